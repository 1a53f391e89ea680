"""Files that hang, exhaust or deceive a reader: refused at once, and shown with no control characters."""

import json
import os
import random
import re
import struct
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import jmi_models
from jmi.errors import CheckpointError, ConfigError, JmiError, TokenizerError
from tests.oracles import grid, llama_grid
from tests.support.checkpoints import assert_same

CONFIG = llama_grid.GRID["attention_bias"]
ESCAPE = "\x1b[2J\x1b]0;gone\x07\u202e"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return llama_grid.write_folder(tmp_path / "model", CONFIG)


def outcome(call: Callable[[], Any], seconds: float = 20.0) -> Any:
    """What ``call`` gives or raises; a test that fails, not one that hangs, where it does not come back."""
    got: list[Any] = []

    def run() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                got.append(call())
            except Exception as error:
                got.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert got, f"no answer within {seconds} s"
    return got[0]


def message(folder: Path, kind: type[JmiError] = JmiError, **kwargs: Any) -> str:
    """Of the error that loading raises: of ``kind``, and fit for a terminal."""
    error = outcome(lambda: jmi_models.load(folder, **kwargs))
    assert isinstance(error, kind), repr(error)
    assert str(error).replace("\n", "").isprintable(), ascii(str(error))
    assert len(str(error)) < 10_000
    return str(error)


@pytest.mark.parametrize(
    "name",
    [
        *("config.json", "model.safetensors", "other.safetensors", "model.safetensors.index.json"),
        *("adapter_config.json", "adapter_model.safetensors", "pytorch_model.bin", "model.pth"),
    ],
)
@pytest.mark.parametrize("beside", [True, False])
def test_a_pipe_among_the_files_is_refused(name: str, beside: bool, folder: Path) -> None:
    (folder / name).unlink(missing_ok=True)
    if not beside:
        (folder / "model.safetensors").unlink(missing_ok=True)
    os.mkfifo(folder / name)
    for pytorch_bin in (False, True):
        assert f"{name}" in message(folder, pytorch_bin=pytorch_bin)
    assert isinstance(outcome(lambda: jmi_models.inspect(folder)), (jmi_models.CompatibilityReport, JmiError))


def test_a_link_to_a_device_is_refused(folder: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (folder / name).rename(folder / "kept")
        (folder / name).symlink_to("/dev/zero")
        assert re.search("no[t a]* regular file", message(folder))
        (folder / name).unlink()
        (folder / "kept").rename(folder / name)


def test_with_a_single_file_an_index_is_not_read(folder: Path) -> None:
    want = jmi_models.load(folder).params
    for index in ("{", json.dumps({"weight_map": {"model.norm.weight": "model-00001-of-00009.safetensors"}})):
        (folder / "model.safetensors.index.json").write_text(index)
        assert_same(jmi_models.load(folder).params, want)


@pytest.mark.parametrize("name", ["llama/grouped", "mixtral/full", "gpt2/plain"])
def test_far_too_many_layers_or_experts_are_answered_at_once(name: str, tmp_path: Path) -> None:
    config = grid.GRID[name]
    tensors = llama_grid.tensors(CONFIG) if name == "llama/grouped" else grid.committed(name).tensors
    for field in {"num_hidden_layers", "n_layer", "num_local_experts"} & set(config):
        for size in (1_000, 9_999, 100_000, 10**9, 10**30):
            grid.write_folder(tmp_path, {**config, field: size}, tensors)
            started = time.process_time()
            text = message(tmp_path)
            assert time.process_time() - started < 5
            assert field in text or "belongs to another model" in text


def test_tensor_names_with_numbers_without_end_are_refused(tmp_path: Path) -> None:
    for names in (["model.layers.{}.self_attn.q_proj.weight"], ["blocks.0.att.r_k", "blocks.{}.x"]):
        for digits in ("9" * 9, "9" * 5000):
            tensors = {name.format(digits): np.ones((2, 2), np.float32) for name in names}
            tensors |= {"emb.weight": np.ones((2, 2), np.float32)} if "blocks" in names[0] else {}
            grid.write_folder(tmp_path, {"model_type": "unheard_of"}, tensors)
            message(tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 400 + "1" + "}" * 400, "nested too deeply"),
        ('{"rms_norm_eps": NaN}', "NaN"),
        ('{"unread": [-Infinity]}', "Infinity"),
        ('{"unread": {"deep": 1e999}}', "1e999"),
        ('{"unread": ' + "9" * 10_000 + "}", "not valid JSON"),
        ('{"model_type": "\\ud800"}', "model_type"),
        ("null", "must hold an object"),
    ],
)
def test_json_that_is_no_config_is_a_config_error(text: str, said: str, folder: Path) -> None:
    (folder / "config.json").write_text(text)
    assert said in message(folder, ConfigError)


def test_an_index_nested_without_end_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text('{"weight_map":' * 50_000)
    assert "not a valid index" in message(folder, CheckpointError)


def test_an_empty_vocabulary_is_an_error(folder: Path) -> None:
    weights = llama_grid.tensors(CONFIG)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = weights[name][:0]
    for vocab_size in (0, None):
        llama_grid.write_folder(folder, {**CONFIG, "vocab_size": vocab_size}, weights)
        assert "vocab_size" in message(folder, ConfigError)
    unnamed = {k: v for k, v in CONFIG.items() if k != "vocab_size"}
    llama_grid.write_folder(folder, {**unnamed, "model_type": "unheard_of"}, weights)
    assert "vocab_size" in message(folder, ConfigError)


@pytest.mark.parametrize("kind", ["llama", "unheard_of"])
def test_names_from_files_are_shown_escaped(kind: str, folder: Path) -> None:
    weights = {**llama_grid.tensors(CONFIG), f"model.{ESCAPE}": np.ones(2, np.float32)}
    llama_grid.write_folder(folder, {**CONFIG, "model_type": kind}, weights)
    assert "\\x1b[2J" in message(folder)
    report = str(jmi_models.inspect(folder))
    assert report.replace("\n", "").isprintable()
    llama_grid.write_folder(folder, {**CONFIG, "model_type": kind, ESCAPE: 3}, llama_grid.tensors(CONFIG))
    if kind == "llama":
        with pytest.warns(UserWarning, match="without effect") as caught:
            jmi_models.load(folder)
        assert str(caught[0].message).isprintable()
    else:
        assert "\\x1b[2J" in message(folder)
    assert str(jmi_models.inspect(folder)).replace("\n", "").isprintable()


def test_names_in_an_index_and_of_files_are_shown_escaped(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    for weight_map in (
        {"model.norm.weight": ESCAPE},
        {"model.norm.weight": f"{ESCAPE}.safetensors"},
        {ESCAPE: "model-1.safetensors"},
        {"model.norm.weight": "\0"},
        {"model.norm.weight": "x" * 5000},
    ):
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        message(folder, CheckpointError)
    (folder / "model.safetensors.index.json").unlink()
    (folder / "model-1.safetensors").rename(folder / f"{ESCAPE}.safetensors")
    (folder / f"{ESCAPE}.safetensors").write_bytes(b"x")
    message(folder, CheckpointError)


def damaged(rng: random.Random, content: bytes) -> bytes:
    """``content`` cut, with bytes changed, a piece repeated, or a piece of text in it replaced."""
    at = rng.randrange(min(len(content), 4000))
    if rng.random() < 0.2:
        return content[:at]
    if rng.random() < 0.3:
        return content[:at] + content[at : at + rng.randrange(1, 60)] * 2 + content[at:]
    if rng.random() < 0.5:
        piece = rng.choice(
            [b"-1", b"1e999", b"NaN", b"null", b"[[", b'"\x1b[31m', b"\xff\xfe", b"99999999999"]
        )
        return content[:at] + piece + content[at + len(piece) :]
    return content[:at] + bytes(rng.randrange(256) for _ in range(3)) + content[at + 3 :]


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "model.safetensors.index.json"])
def test_damaged_files_end_in_an_error_or_a_model(name: str, tmp_path: Path) -> None:
    rng = random.Random(name)
    weights = llama_grid.tensors(CONFIG)
    grid.write_folder(tmp_path, CONFIG, weights)
    if name.endswith("index.json"):
        (tmp_path / "model.safetensors").rename(tmp_path / "model-1.safetensors")
        (tmp_path / name).write_text(
            json.dumps({"weight_map": dict.fromkeys(weights, "model-1.safetensors")})
        )
    whole, refused = (tmp_path / name).read_bytes(), 0
    for _ in range(60):
        (tmp_path / name).write_bytes(damaged(rng, whole))
        got = outcome(lambda: jmi_models.inspect(tmp_path))
        assert isinstance(got, (jmi_models.CompatibilityReport, JmiError)), repr(got)
        assert str(got).replace("\n", "").isprintable()
        refused += isinstance(got, JmiError) or not got.supported
    assert refused > 30


def test_a_header_that_promises_more_than_the_file_is_refused(tmp_path: Path) -> None:
    header = {"w": {"dtype": "F32", "shape": [2**40, 2**20], "data_offsets": [0, 4]}}
    text = json.dumps(header).encode()
    for length in (len(text), 2**62, 2**63):
        grid.write_folder(tmp_path, CONFIG, {})
        (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", length) + text + b"1234")
        assert "model.safetensors" in message(tmp_path, CheckpointError)
    save_file({}, tmp_path / "model.safetensors")
    message(tmp_path)


def test_a_model_runs_on_ids_where_nobody_can_read_its_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.model").write_bytes(b"sentencepiece")
    assert "tokenizer=False" in message(folder, TokenizerError)
    assert jmi_models.load(folder, tokenizer=False, progress=False).tokenizer is None
