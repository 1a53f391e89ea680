"""A hundred command lines with a mistake in each: one sentence, exit code 2, nothing run or written."""

import functools
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

import jmi.lm as runs
import jmi_models
from tests.cli.command_line import jmi

Options = list[str]
PAIR = ["The capital of France is", "The capital of Germany is"]


def paths(rng: random.Random) -> str:
    """Where nothing can be written."""
    deep = "/".join(rng.choice("abc") for _ in range(rng.randint(1, 4)))
    known = ["", ".", "folder", "folder/", "pipe", "to_pipe", "loop", "astray", "file/x.json"]
    return rng.choice([*known, f"no/{deep}", "x" * 300])


def too_far(rng: random.Random, size: int) -> str:
    """An index that ``size`` things do not have, of either sign, or no number at all."""
    beyond = size + rng.choice([0, 1, rng.randrange(10**3), 2**31, 2**63, 10**25])
    return rng.choice([str(beyond), str(-beyond - 1), "1.5", "one", "", "nan", "0x"])


def too_few(rng: random.Random) -> str:
    return rng.choice(["0", "-1", str(-(10**25)), "2.5", "many", ""])


def models(rng: random.Random) -> str:
    names = [
        "",
        " ",
        "atlas ",
        "Atlas",
        "no/such-model",
        "a/b/c",
        "https://huggingface.co/gpt2",
        "~",
        "x" * 5000,
    ]
    paths = ["./nowhere", "..", "folder", "pipe", "file", "broken", "loop", "/dev/null"]
    return rng.choice([*names, *paths, "\x1b[31matlas", "[red]"])


def words(rng: random.Random) -> str:
    """A target that is not one token."""
    return rng.choice(["", "Llanfairpwllgwyngyll", "two words", "\x1b[2J", "[/red]", "猫猫", "Paris\n"])


def prompts(rng: random.Random) -> str:
    return rng.choice(["", "word " * rng.randint(257, 400), "x" * 5000, "\x00" * 600])


def sites(rng: random.Random) -> str:
    layer = rng.choice([6, 99, -7, 10**25, "x"])
    names = ["", "hook_resid_per", "attn", "*", "blocks.*.*", "attn.hook_*", "hook_logits", "blocks.0"]
    return rng.choice([*names, "[red]", "\x1b[31m", "x" * 500, f"blocks.{layer}.hook_resid_pre"])


def dtypes(rng: random.Random) -> str:
    names = ["int8", "nonsense", "", "float32 ", "complex64", "O", "V4", "float128", "f4,f4", "\x1b"]
    return rng.choice(names)


MISTAKES: dict[str, list[Callable[[random.Random], Options]]] = {
    "knockout": [
        lambda rng: [prompts(rng)],
        lambda rng: [PAIR[0], rng.choice(PAIR)],
        lambda rng: ["--layer", too_far(rng, 6)],
        lambda rng: ["--head", too_far(rng, 4)],
        lambda rng: ["--key", too_far(rng, 7)],
        lambda rng: ["--query", too_far(rng, 7)],
        lambda rng: ["--query", "0", "--key", "3"],
        lambda rng: ["--target", words(rng)],
        lambda rng: ["--top", too_few(rng)],
        lambda rng: ["--all-cached", "--plot", "new.png"],
    ],
    "patch": [
        lambda rng: [rng.choice([*PAIR, ""])],
        lambda rng: [PAIR[0], prompts(rng)],
        lambda rng: [PAIR[0]] * 2,
        lambda rng: [*PAIR, rng.choice(PAIR)],
        lambda rng: ["The capital of France", "The capital of the old city of France and Germany"],
        lambda rng: ["--over", rng.choice(["banana", "", "head", "[red]"]), "--site", "hook_resid_pre"],
        lambda rng: ["--over", "layer", "--over", "layer"],
        lambda rng: ["--over", "layer", "--plot", "new.png"],
        lambda rng: ["--site", sites(rng)],
        lambda rng: ["--answer", words(rng)],
        lambda rng: ["--window", too_few(rng)],
        lambda rng: ["--into", rng.choice(["", "both", "Clean"])],
        lambda rng: ["--metric", rng.choice(["", "beauty", "[red]"])],
    ],
    "attribute": [
        lambda rng: [rng.choice(PAIR)],
        lambda rng: [PAIR[0], "The capital of South Korea is"],
        lambda rng: ["--metric", rng.choice(["", "rank", "kl"])],
        lambda rng: ["--site", rng.choice([sites(rng), "hook_embed"])],
        lambda rng: ["--edges", rng.choice([too_few(rng), "1109", str(10**25)])],
        lambda rng: ["--edges", "5", "--circuit", paths(rng)],
        lambda rng: ["--circuit", "new.json"],
        lambda rng: ["--edges", "5", "--plot", "new.png"],
        lambda rng: ["--steps", too_few(rng)],
        lambda rng: ["--wrong", words(rng)],
    ],
    "sites": [
        lambda rng: ["--batch", too_few(rng)],
        lambda rng: ["--pos", rng.choice([too_few(rng), str(10**25)])],
        lambda rng: ["--output", paths(rng)],
    ],
    "inspect": [lambda rng: ["--output", paths(rng)], lambda rng: ["--plot", "new.png"]],
    "download": [lambda rng: ["--output", paths(rng)], lambda rng: ["atlas", "--revision", "main"]],
}
OF_THREE = [
    lambda rng: ["--output", paths(rng)],
    lambda rng: ["--plot", paths(rng)],
    lambda rng: ["--plot", rng.choice(["no/new.png", "file/new.png", "pipe.png", "folder.svg"])],
    lambda rng: ["--plot", "new" + rng.choice([".gif", ".txt", "", ".png.json", ".PNGG"])],
    lambda rng: [
        "--output",
        "new.png",
        "--plot",
        rng.choice(["new.png", "./new.png", "folder/../new.png", "link.png"]),
    ],
    lambda rng: ["--dtype", dtypes(rng)],
    lambda rng: ["--revision", rng.choice(["main", "", "[red]"])],
]
OF_ALL = [
    lambda rng: ["--" + rng.choice(["nonsense", "[red]", "\x1b[31m", "layers", "x" * 300])],
    lambda rng: ["--output"],
    lambda rng: ["-9"],
]


def line(rng: random.Random) -> Options:
    """A command line that differs from a good one by one mistake."""
    if rng.random() < 0.05:
        return [rng.choice(["nonsense", "", "Knockout", "\x1b[31m", "[red]", "--nonsense"])]
    command = rng.choice(list(MISTAKES))
    with_files = command in ("knockout", "patch", "attribute")
    if rng.random() < 0.15:
        model = models(rng)
        return [command, "--model", model] if with_files else [command, model]
    common = OF_ALL if rng.random() < 0.1 else OF_THREE if rng.random() < 0.3 and with_files else []
    mistake = rng.choice(common or MISTAKES[command])(rng)
    harmless = rng.choice([[], ["--top", "3"], ["--output", "good.json"], ["--dtype", "float32"]])
    if not with_files or {*harmless} & {*mistake}:
        harmless = []
    return [command, *harmless, *mistake]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with what can be in the way; nothing is run in it."""
    (tmp_path / "file").write_text("kept")
    for name in ("folder", "folder.svg"):
        (tmp_path / name).mkdir()
    for name in ("pipe", "pipe.png"):
        os.mkfifo(tmp_path / name)
    for name, text in (("broken", "{"), ("deep", "[" * 100_000)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(text)
    for name, target in (("to_pipe", "pipe"), ("loop", "loop"), ("astray", "no/x"), ("link.png", "new.png")):
        (tmp_path / name).symlink_to(target)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(jmi_models, "load", functools.cache(jmi_models.load))
    monkeypatch.setattr(runs, "run_compiled", lambda *_: pytest.fail("the model was run"))
    return tmp_path


def listing(folder: Path) -> dict[str, int]:
    return {str(path): path.lstat().st_mode for path in folder.rglob("*")}


def test_a_mistake_in_a_command_line_is_one_sentence_before_anything_is_run(folder: Path) -> None:
    rng, before = random.Random(0), listing(folder)
    lines = [line(rng) for _ in range(100)]
    for arguments in lines:
        done = jmi(*arguments)
        assert (done.returncode, done.stdout) == (2, ""), (arguments, done)
        (said,) = done.stderr.splitlines()
        assert said.startswith("error: "), (arguments, said)
        assert said.isprintable(), (arguments, said)
        assert len(said) > len("error: ") + 10, (arguments, said)
        assert listing(folder) == before, arguments
    assert (folder / "file").read_text() == "kept"
    assert {arguments[0] for arguments in lines} > set(MISTAKES)
