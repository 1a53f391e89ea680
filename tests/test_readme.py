"""The README's Python runs as printed, its picture and links are there, and it stays short."""

import re
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
MOST_WORDS = 1500


def rendered(text: str) -> str:
    """What a reader sees of Markdown: without the targets of links and the marks of tables and fences."""
    text = re.sub(r"\]\([^)]*\)", "", text)
    text = re.sub(r"^(```.*|[|: -]+)$", "", text, flags=re.MULTILINE)
    return re.sub(r"^\| | \|$| \| |[*`#\[\]!]", " ", text, flags=re.MULTILINE)


def test_words_are_counted_as_they_are_read():
    table = "| a b | c |\n|---|---|\n| **d** | `e f` |\n"
    assert rendered(table).split() == ["a", "b", "c", "d", "e", "f"]
    assert rendered("# A\n[one two](https://three)\n```python\nx = 1\n```").split() == [
        *("A", "one", "two"),
        *("x", "=", "1"),
    ]


def test_it_is_read_in_ten_minutes():
    assert len(rendered(TEXT).split()) <= MOST_WORDS


def test_the_tour_runs_and_shows_what_it_says():
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL):
        exec(compile(block, "README.md", "exec"), names)
    lm = names["lm"]
    assert names["grid"].shape == (lm.arch.n_layers, names["tokens"].shape[1])
    assert names["logits"].shape == names["grid"].shape
    assert np.isfinite(names["logits"]).all()
    assert np.abs(names["steer"]).max() > 0
    assert names["text"].startswith(" Paris")
    assert "Tokyo" in lm.decode(lm.generate("The capital of Japan is", 6).tokens[0])
    assert names["moved"].recovery.shape == (lm.arch.n_layers, lm.arch.n_heads, 1)
    assert names["moved"].recovery.max() > 0.2
