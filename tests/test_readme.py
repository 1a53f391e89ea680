"""The README's Python runs as printed, and its picture and links are there."""

import re
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()


def test_the_tour_runs_and_shows_what_it_says():
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL):
        exec(compile(block, "README.md", "exec"), names)
    lm = names["lm"]
    assert names["grid"].shape == (lm.arch.n_layers, names["tokens"].shape[1])
    assert names["logits"].shape == names["grid"].shape
    assert np.isfinite(names["logits"]).all()
    assert np.abs(names["steer"]).max() > 0
    assert "Tokyo" in names["texts"][0]
    assert "Paris" in names["texts"][-1]
    assert names["result"].kl > 1
    assert names["moved"].recovery.max() > 0.2
    assert names["scores"].graph.n_edges == 1108


def test_links_point_to_files():
    for link in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert link.startswith("https://") or (ROOT / link).is_file(), link
