"""The commands on a recurrent model: a folder with RWKV-7 weights and a vocabulary, and nothing else."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import jmi_models
from jmi.errors import ArgumentError
from jmi.hooks.interventions import Zero
from jmi.interp import knockout
from tests.cli.command_line import jmi, refused
from tests.support.rwkv_data import weights
from tests.support.tolerances import assert_agree
from tests.support.torch_files import write_state_dict

WORDS = [*"abcdefghijklmnopqrstuvwxyz .,!?", "the ", "then ", "and "]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rwkv")
    save_file(weights(7), folder / "RWKV-x070-tiny.safetensors")
    write_vocabulary(folder)
    return folder


def write_vocabulary(folder: Path) -> None:
    lines = [f"{i} {word!r} {len(word.encode())}\n" for i, word in enumerate(WORDS, 1)]
    (folder / "rwkv_vocab_tiny.txt").write_text("".join(lines))


def test_knockout_hides_a_token_from_every_later_one(folder: Path, tmp_path: Path) -> None:
    output, plot = tmp_path / "result.json", tmp_path / "result.png"
    where = ("then a cat", "--model", folder, "--key", 1, "--layer", 1)
    done = jmi("knockout", *where, "--output", output, "--plot", plot)
    assert done.returncode == 0, done.stderr
    assert "KL(baseline || ablated)" in done.stdout
    record = json.loads(output.read_text())
    assert record["tokens"] == ["then ", "a", " ", "c", "a", "t"]
    attention = np.asarray(record["attention_to_cut_edges"])
    assert attention.shape == (1, 2, 6, 6)
    assert not attention[:, :, :2].any()
    assert not np.delete(attention, 1, axis=-1).any()

    lm = jmi_models.load(folder)
    hidden = lm.run("then a cat", {"blocks.1.rwkv.hook_write": Zero(positions=1)}).logits[0, -1]
    result = knockout(lm, "then a cat", layer=1, keys=1)
    assert_agree(result.ablated_logits, hidden)
    assert result.kl == pytest.approx(record["kl_divergence"])
    assert result.kl > 0
    with pytest.raises(ArgumentError, match="no later one"):
        knockout(lm, "then a cat", keys=-1)


def test_an_edge_of_a_recurrent_model_is_refused(folder: Path) -> None:
    done = jmi("knockout", "then a cat", "--model", folder, "--query", 3)
    assert done.returncode == 2
    assert "hides a token from every later one" in done.stderr
    assert "Traceback" not in done.stderr


def test_sites_and_inspect_know_it(folder: Path) -> None:
    done = jmi("sites", folder)
    assert done.returncode == 0, done.stderr
    assert "blocks.i.rwkv.hook_states" in done.stdout
    assert "attn" not in done.stdout.replace("hook_effective_attn", "").replace("hook_attn_out", "")
    done = jmi("inspect", folder)
    assert done.returncode == 0, done.stderr
    assert "rwkv7" in done.stdout


def test_the_stream_is_patched_and_attributed_and_what_needs_attention_is_refused(folder: Path) -> None:
    pair = ("then a cat", "then a dog", "--model", folder)
    for command in ("patch", "attribute"):
        done = jmi(command, *pair, "--site", "hook_resid_pre", "--metric", "prob")
        assert done.returncode == 0, done.stderr
        assert "hook_resid_pre  answer" in done.stdout
        assert "attn.hook_z" in refused(command, *pair)
    assert "hook_q_input" in refused("attribute", *pair, "--edges", 3)


def test_pickled_weights_are_read_on_request_only(tmp_path: Path) -> None:
    write_state_dict(tmp_path / "RWKV-x070-tiny.pth", weights(7))
    write_vocabulary(tmp_path)
    for command in (("knockout", "--model"), ("sites",), ("inspect",), ("download",)):
        assert "--pytorch-bin" in refused(*command, tmp_path)
    done = jmi("knockout", "then a cat", "--model", tmp_path, "--pytorch-bin")
    assert done.returncode == 0, done.stderr
    assert "rwkv7" in jmi("inspect", tmp_path, "--pytorch-bin").stdout
    assert "blocks.i.rwkv.hook_states" in jmi("sites", tmp_path, "--pytorch-bin").stdout
