"""``jmi patch`` as a person types it."""

import json

import numpy as np
import pytest

import jmi_models
from jmi.interp.patching.patch import patch
from jmi.metrics import LogitDiff
from tests.cli.command_line import jmi, refused


def test_a_few_heads_move_the_name(tmp_path):
    """The default: on indirect objects, few heads' outputs carry the answer to the last token."""
    output, plot = tmp_path / "patch.json", tmp_path / "patch.png"
    done = jmi("patch", "--output", output, "--plot", plot)
    assert done.returncode == 0, done.stderr
    assert "answer ' Mary', not ' John'" in done.stdout
    assert plot.read_bytes().startswith(b"\x89PNG")
    record = json.loads(output.read_text())
    assert record["command"] == "patch"
    assert (record["answer"]["token"], record["wrong"]["token"]) == (" Mary", " John")
    recovery = np.asarray(record["recovery"])
    strongest = np.sort(np.abs(recovery).ravel())[::-1]
    assert recovery.max() > 0.3
    assert strongest[4:].sum() < strongest[:4].sum()
    assert np.median(strongest) < 0.05

    lm = jmi_models.load("atlas")
    clean, corrupted = record["clean"]["text"], record["corrupted"]["text"]
    assert record["into"] == "corrupted"
    goal = LogitDiff(record["answer"]["token_id"], record["wrong"]["token_id"])
    found = patch(lm, clean, corrupted, "attn.hook_z", metric=goal, over=("layer", "head"))
    np.testing.assert_allclose(recovery, found.recovery[..., 0], atol=1e-6)


def test_the_clean_run_is_changed_at_positions_of_prompts_that_differ_in_length():
    prompts = ("The capital of France is", "The capital of South Korea is")
    options = ("--site", "hook_resid_pre", "--into", "clean", "--metric", "prob", "--top", "1")
    done = jmi("patch", *prompts, *options)
    assert done.returncode == 0, done.stderr
    assert "only positions that correspond" in done.stdout
    lines = [line for line in done.stdout.splitlines() if line.startswith(("clean ", "corrupted "))]
    assert [prompt in line for prompt, line in zip(prompts, lines, strict=True)] == [True, True]


def test_a_map_of_nothing_says_so():
    """Before the first layer, tokens that correspond are the same in both runs."""
    pair = ("The capital of France is", "The capital of South Korea is", "--over", "position")
    for layer, nothing in ((0, True), (3, False)):
        done = jmi("patch", *pair, "--site", f"blocks.{layer}.hook_resid_pre")
        assert done.returncode == 0, done.stderr
        assert ("nothing here changes the answer" in done.stdout) == nothing


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--site", "hook_resid_per"), "hook_resid_pre"),
        (("--over", "banana"), "'layer', 'position'"),
        (("--answer", "Constantinople of old"), "one token"),
        (("--plot", "picture.gif"), ".png"),
        (("--over", "layer", "--plot", "picture.png"), "two axes"),
        (("The cat", "The cat"), "same tokens"),
        (("The cat",), "two prompts"),
        (("The capital of France", "The capital of South Korea"), "before the first difference"),
        (("The cat sat", "The dog sat"), "--answer and --wrong"),
        (("", "The cat"), "empty"),
        (("--output", "nowhere/result.json"), "does not exist"),
        (("--metric", "beauty"), "beauty"),
        (("--into", "nothing"), "'--into': 'nothing' is not one of"),
    ],
)
def test_bad_input_is_one_clear_error(arguments, words):
    assert words in refused("patch", *arguments)
