"""Loading pytorch_model.bin: only on request, the same model as from safetensors, and no code runs."""

import importlib
import json
import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import jmi_models
from tests.oracles import grid, llama_grid
from tests.support import torch_files
from tests.support.checkpoints import assert_same, fails
from tests.support.torch_files import write_state_dict

CONFIG = llama_grid.GRID["attention_bias"]
TIED = llama_grid.GRID["multi_query_tied"]
BIN, BIN_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
GATE = "model.layers.1.mlp.gate_proj.weight"
LAST = "pytorch_model-00003-of-00003.bin"


def from_bin(folder: Path, config: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Any:
    """Parameters read from a folder with one file of ``arrays``."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    write_state_dict(folder / BIN, arrays)
    return jmi_models.load(folder, pytorch_bin=True).params


@pytest.fixture(scope="module")
def want(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The parameters, from safetensors."""
    return jmi_models.load(llama_grid.write_folder(tmp_path_factory.mktemp("safe"), CONFIG)).params


@pytest.fixture
def single(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    write_state_dict(tmp_path / BIN, llama_grid.tensors(CONFIG))
    return tmp_path


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """The same model in three shards."""
    folder, arrays = tmp_path / "sharded", llama_grid.tensors(CONFIG)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    names, weight_map = sorted(arrays), dict[str, str]()
    for i in range(3):
        file = f"pytorch_model-{i + 1:05}-of-00003.bin"
        write_state_dict(folder / file, {name: arrays[name] for name in names[i::3]})
        weight_map |= dict.fromkeys(names[i::3], file)
    write_index(folder / BIN_INDEX, weight_map)
    return folder


def write_index(file: Path, weight_map: Mapping[str, str]) -> None:
    file.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))


def redirect(folder: Path, name: str, file: str) -> None:
    """Let the index say that ``name`` lies in ``file``."""
    weight_map = json.loads((folder / BIN_INDEX).read_text())["weight_map"]
    write_index(folder / BIN_INDEX, {**weight_map, name: file})


def test_one_file_gives_the_same_parameters(single: Path, want: Any) -> None:
    assert_same(jmi_models.load(single, pytorch_bin=True).params, want)


def test_shards_give_the_same_parameters(sharded: Path, want: Any) -> None:
    assert_same(jmi_models.load(sharded, pytorch_bin=True).params, want)


def test_transposed_tensors_give_the_same_parameters(tmp_path: Path, want: Any) -> None:
    arrays = {name: np.asfortranarray(array) for name, array in llama_grid.tensors(CONFIG).items()}
    assert not arrays[GATE].flags.c_contiguous
    assert_same(from_bin(tmp_path / "model", CONFIG, arrays), want)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_other_dtypes_give_the_same_parameters(tmp_path: Path, dtype: str) -> None:
    arrays = {name: array.astype(np.dtype(dtype)) for name, array in llama_grid.tensors(CONFIG).items()}
    safe = llama_grid.write_folder(tmp_path / "safe", CONFIG, arrays)
    assert_same(from_bin(tmp_path / "bin", CONFIG, arrays), jmi_models.load(safe).params)


def test_a_head_that_shares_its_storage_with_the_embedding_is_tied(tmp_path: Path) -> None:
    arrays = llama_grid.tensors(TIED)
    params = from_bin(tmp_path / "model", TIED, {**arrays, HEAD: arrays[EMBED]})
    assert "unembed" not in params
    np.testing.assert_array_equal(params["embed"]["W_E"], arrays[EMBED])


@pytest.mark.parametrize("kind", ["single", "sharded"])
def test_without_being_asked_for_it_is_refused_with_a_hint(request: Any, kind: str) -> None:
    message = fails(request.getfixturevalue(kind))
    assert f"only {BIN}, the pickled format; pass pytorch_bin=True" in message


@pytest.mark.parametrize("kind", ["single", "sharded"])
def test_safetensors_win(request: Any, kind: str, want: Any) -> None:
    folder = request.getfixturevalue(kind)
    llama_grid.write_folder(folder, CONFIG)
    for file in folder.glob("pytorch_model*"):
        file.write_bytes(b"not even opened")
    assert_same(jmi_models.load(folder, pytorch_bin=True).params, want)


@pytest.mark.parametrize("style", ["parent", "absolute", "nested"])
def test_index_cannot_point_outside_its_folder(sharded: Path, style: str) -> None:
    outside = shutil.copy(sharded / LAST, sharded.parent / LAST)
    (sharded / "sub").mkdir()
    shutil.copy(outside, sharded / "sub" / LAST)
    file = {"parent": f"../{LAST}", "absolute": str(outside), "nested": f"sub/{LAST}"}[style]
    redirect(sharded, GATE, file)
    message = fails(sharded, pytorch_bin=True)
    assert repr(file) in message
    assert "outside the model folder" in message


def test_index_of_safetensors_does_not_get_a_pickle_read(single: Path) -> None:
    arrays = llama_grid.tensors(CONFIG)
    write_index(single / "model.safetensors.index.json", dict.fromkeys(arrays, BIN))
    for asked in (False, True):
        assert f"{BIN}: not a readable safetensors file" in fails(single, pytorch_bin=asked)


def test_index_of_pickles_reads_nothing_else(sharded: Path) -> None:
    save_file({GATE: llama_grid.tensors(CONFIG)[GATE]}, sharded / "other.safetensors")
    redirect(sharded, GATE, "other.safetensors")
    assert "other.safetensors: not a zip archive" in fails(sharded, pytorch_bin=True)


def test_shards_that_are_missing_or_lack_a_tensor_are_named(sharded: Path) -> None:
    redirect(sharded, "model.norm.bias", LAST)
    assert f"{LAST}: the index promises tensors it does not hold: model.norm.bias" in fails(
        sharded, pytorch_bin=True
    )
    (sharded / LAST).unlink()
    assert f"shard {LAST} is missing" in fails(sharded, pytorch_bin=True)


def test_truncated_file_is_refused(single: Path) -> None:
    content = (single / BIN).read_bytes()
    (single / BIN).write_bytes(content[: len(content) // 2])
    assert f"{BIN}: the zip archive is truncated or damaged" in fails(single, pytorch_bin=True)


def test_tensors_that_do_not_fit_the_config_are_named(single: Path) -> None:
    arrays = llama_grid.tensors(CONFIG)
    arrays[GATE] = arrays[GATE].T
    arrays["model.norm.weight"] = arrays["model.norm.weight"].astype(np.int64)
    write_state_dict(single / BIN, arrays)
    message = fails(single, pytorch_bin=True)
    assert f"shape: {GATE} is [24, 28], expected [28, 24]" in message
    assert "dtype: model.norm.weight is I64; only F64, F32, F16, BF16 can be loaded" in message


@pytest.mark.parametrize("kind", ["single", "sharded"])
def test_malicious_files_are_refused_and_nothing_runs(request: Any, kind: str, tmp_path: Path) -> None:
    folder, trace = request.getfixturevalue(kind), tmp_path / "trace"
    attack = pickle.dumps(torch_files.Malice(f"touch {trace}"), protocol=2)
    torch_files.write(folder / (BIN if kind == "single" else LAST), attack, {})
    for asked in (False, True):
        message = fails(folder, pytorch_bin=asked)
        assert ("refused and nothing was run" in message) == asked
    assert not trace.exists()


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("name", "dtype"),
    [("llama/attention_bias", "bfloat16"), ("gpt2/plain", "float32"), ("mixtral/full", "float32")],
)
def test_what_torch_saves_gives_the_same_parameters(name: str, dtype: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="the live oracle needs torch")
    pytest.importorskip("transformers", reason="the live oracle needs transformers")
    oracle, config = importlib.import_module("tests.oracles.hugging_face"), grid.GRID[name]
    arrays = grid.tensors(oracle.shapes(config), config["model_type"])
    arrays = {key: array.astype(dtype) for key, array in arrays.items()}
    folder, weight_map = tmp_path / "bin", dict[str, str]()
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    for i in range(2):
        file, keys = f"pytorch_model-0000{i + 1}-of-00002.bin", sorted(arrays)[i::2]
        # Through float32, because torch.from_numpy does not know bfloat16.
        values = {key: torch.from_numpy(arrays[key].astype(np.float32)) for key in keys}
        values = {key: torch.nn.Parameter(value.to(getattr(torch, dtype))) for key, value in values.items()}
        torch.save(values, folder / file)
        weight_map |= dict.fromkeys(keys, file)
    write_index(folder / BIN_INDEX, weight_map)
    safe = grid.write_folder(tmp_path / "safe", config, arrays)
    assert_same(jmi_models.load(folder, pytorch_bin=True).params, jmi_models.load(safe).params)
