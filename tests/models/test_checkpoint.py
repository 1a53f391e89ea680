"""Loading: what a checkpoint may look like, and every way in which it may be wrong."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

import jmi_models
from jmi.errors import ArgumentError
from tests.oracles import grid, llama_grid
from tests.support.checkpoints import assert_same, fails

CONFIG = llama_grid.GRID["attention_bias"]
TIED = llama_grid.GRID["multi_query_tied"]
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
GATE = "model.layers.1.mlp.gate_proj.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return llama_grid.write_folder(tmp_path / "model", CONFIG)


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """The same model in three shards."""
    out, weights = tmp_path / "sharded", llama_grid.tensors(CONFIG)
    out.mkdir()
    names, weight_map = sorted(weights), {}
    for i in range(3):
        file = f"model-{i + 1:05}-of-00003.safetensors"
        save_file({name: weights[name] for name in names[i::3]}, out / file)
        weight_map |= dict.fromkeys(names[i::3], file)
    write_index(out, {"metadata": {"total_size": 1}, "weight_map": weight_map})
    (out / "config.json").write_text(json.dumps(CONFIG))
    return out


def write_index(folder: Path, index: Any) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def redirect(folder: Path, name: str, file: str) -> None:
    """Let the index say that ``name`` lies in ``file``."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"][name] = file
    write_index(folder, index)


def test_every_tensor_arrives_where_it_belongs(folder: Path) -> None:
    params, weights = jax.device_get(jmi_models.load(folder).params), llama_grid.tensors(CONFIG)
    layer = "model.layers.1.self_attn"
    np.testing.assert_array_equal(params["embed"]["W_E"], weights[EMBED])
    np.testing.assert_array_equal(params["unembed"]["W_U"], weights[HEAD].T)
    blocks = params["blocks"]
    np.testing.assert_array_equal(blocks["mlp"]["W_gate"][1], weights[GATE].T)
    queries = weights[f"{layer}.q_proj.weight"].reshape(4, 6, 24)
    np.testing.assert_array_equal(blocks["attn"]["W_Q"][1], queries.transpose(2, 0, 1))
    np.testing.assert_array_equal(
        blocks["attn"]["W_O"][1], weights[f"{layer}.o_proj.weight"].T.reshape(4, 6, 24)
    )
    np.testing.assert_array_equal(blocks["attn"]["b_V"][1], weights[f"{layer}.v_proj.bias"].reshape(2, 6))


def test_sharded_checkpoint_equals_single_file(folder: Path, sharded: Path) -> None:
    single, several = jmi_models.load(folder), jmi_models.load(sharded)
    assert several.arch == single.arch
    assert_same(several.params, single.params)


@pytest.mark.parametrize("kept", [0, 5, 200, 0.5, 0.999])
def test_truncated_file_is_refused(folder: Path, kept: float) -> None:
    file = folder / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: kept if isinstance(kept, int) else int(kept * len(content))])
    message = fails(folder)
    assert "model.safetensors" in message
    assert "download it again" in message


def test_missing_shard_is_named(sharded: Path) -> None:
    (sharded / "model-00002-of-00003.safetensors").unlink()
    assert "shard model-00002-of-00003.safetensors is missing" in fails(sharded)


def test_tensor_that_the_index_promises_in_vain_is_named(sharded: Path) -> None:
    redirect(sharded, "model.norm.bias", "model-00001-of-00003.safetensors")
    assert "promises tensors it does not hold: model.norm.bias" in fails(sharded)


@pytest.mark.parametrize("style", ["parent", "absolute", "nested", "dots"])
def test_index_cannot_point_outside_its_folder(folder: Path, sharded: Path, style: str) -> None:
    outside = shutil.copy(folder / "model.safetensors", sharded.parent / "x.safetensors")
    (sharded / "sub").mkdir()
    shutil.copy(outside, sharded / "sub" / "x.safetensors")
    names = {
        "parent": "../x.safetensors",
        "absolute": str(outside),
        "nested": "sub/x.safetensors",
        "dots": "..",
    }
    redirect(sharded, GATE, names[style])
    message = fails(sharded)
    assert repr(names[style]) in message
    assert "outside the model folder" in message


@pytest.mark.parametrize("index", [[], {}, {"weight_map": []}, {"weight_map": {GATE: 5}}, None])
def test_invalid_index_is_refused(sharded: Path, index: Any) -> None:
    write_index(sharded, index)
    assert "not a valid index" in fails(sharded)


def test_index_that_is_not_json_is_refused(sharded: Path) -> None:
    (sharded / "model.safetensors.index.json").write_text("{")
    assert "not a valid index" in fails(sharded)


def test_a_lone_safetensors_file_may_have_any_name_and_of_two_none_is_guessed(folder: Path) -> None:
    want = jmi_models.load(folder).params
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    assert_same(jmi_models.load(folder).params, want)
    shutil.copy(folder / "weights.safetensors", folder / "others.safetensors")
    message = fails(folder)
    assert "model.safetensors.index.json" in message
    assert "weights.safetensors" in message


def test_pickled_weights_are_read_on_request_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "pass pytorch_bin=True" in fails(folder)


def test_all_problems_are_reported_together(folder: Path) -> None:
    weights = llama_grid.tensors(CONFIG)
    del weights["model.layers.0.self_attn.k_proj.bias"], weights["model.norm.weight"]
    weights["model.layers.2.extra"] = np.zeros(3, np.float32)
    weights[GATE] = weights[GATE].T.copy()
    weights["model.layers.0.mlp.up_proj.weight"] = np.zeros((28, 24), np.int8)
    message = fails(llama_grid.write_folder(folder, CONFIG, weights))
    assert "(5 problems)" in message
    for line in (
        "missing: model.layers.0.self_attn.k_proj.bias [12]",
        "missing: model.norm.weight [24]",
        "surplus: model.layers.2.extra [3]",
        f"shape: {GATE} is [24, 28], expected [28, 24]",
        "dtype: model.layers.0.mlp.up_proj.weight is I8",
    ):
        assert line in message


@pytest.mark.parametrize(
    "dtype", [np.int8, np.int64, np.bool_, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2]
)
def test_weights_of_a_foreign_dtype_are_refused(folder: Path, dtype: Any) -> None:
    weights = {name: value.astype(dtype) for name, value in llama_grid.tensors(CONFIG).items()}
    message = fails(llama_grid.write_folder(folder, CONFIG, weights))
    assert f"({len(weights)} problems)" in message
    assert "only F64, F32, F16, BF16 can be loaded" in message


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_named(folder: Path, bad: float) -> None:
    weights = llama_grid.tensors(CONFIG)
    weights[GATE][3, 4] = bad
    weights["model.norm.weight"][0] = bad
    message = fails(llama_grid.write_folder(folder, CONFIG, weights))
    assert "not finite" in message
    assert set(re.findall(r"model\.[\w.]+", message)) == {GATE, "model.norm.weight"}


def test_weights_beyond_the_range_of_the_requested_dtype_are_refused(folder: Path) -> None:
    weights = llama_grid.tensors(CONFIG)
    weights[GATE][0, 0] = 1e6
    llama_grid.write_folder(folder, CONFIG, weights)
    assert jmi_models.load(folder, dtype="bfloat16").dtype == ml_dtypes.bfloat16
    assert "as float16" in fails(folder, dtype="float16")


def test_stored_head_that_differs_from_the_embedding_is_used(tmp_path: Path) -> None:
    weights = llama_grid.tensors(TIED)
    weights[HEAD] = weights[EMBED].copy()
    weights[HEAD][60, 23] += 1
    lm = jmi_models.load(llama_grid.write_folder(tmp_path, TIED, weights))
    assert not lm.arch.tied
    np.testing.assert_array_equal(lm.params["unembed"]["W_U"], weights[HEAD].T)
    np.testing.assert_array_equal(lm.params["embed"]["W_E"], weights[EMBED])


@pytest.mark.parametrize("stored", [(EMBED,), (EMBED, HEAD), (HEAD,)])
def test_tied_model_may_store_the_embedding_the_head_or_both(tmp_path: Path, stored: tuple[str, ...]) -> None:
    weights = llama_grid.tensors(TIED)
    embedding = weights.pop(EMBED)
    weights |= dict.fromkeys(stored, embedding)
    lm = jmi_models.load(llama_grid.write_folder(tmp_path, TIED, weights))
    assert lm.arch.tied
    assert "unembed" not in lm.params
    np.testing.assert_array_equal(lm.params["embed"]["W_E"], embedding)


def test_untied_model_without_its_head_is_refused(folder: Path) -> None:
    weights = llama_grid.tensors(CONFIG)
    del weights[HEAD]
    assert f"missing: {HEAD}" in fails(llama_grid.write_folder(folder, CONFIG, weights))


def test_buffers_of_old_checkpoints_are_ignored(folder: Path) -> None:
    want = jmi_models.load(folder).params
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(3, np.float32)}
    llama_grid.write_folder(folder, CONFIG, llama_grid.tensors(CONFIG) | buffer)
    assert_same(jmi_models.load(folder).params, want)


@pytest.mark.parametrize("wanted", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("stored", ["float64", "float32", "bfloat16", "float16"])
def test_weights_are_cast_as_numpy_casts(tmp_path: Path, stored: str, wanted: str) -> None:
    weights = {name: value.astype(stored) for name, value in llama_grid.tensors(CONFIG).items()}
    lm = jmi_models.load(llama_grid.write_folder(tmp_path, CONFIG, weights), dtype=wanted)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(lm.params)} == {wanted}
    want = weights[GATE].T.astype(wanted).astype(np.float64)
    np.testing.assert_array_equal(np.asarray(lm.params["blocks"]["mlp"]["W_gate"][1], np.float64), want)


@pytest.mark.parametrize("dtype", ["int32", "float8_e4m3fn", "complex64", "no such dtype", "float64"])
def test_dtype_that_cannot_be_computed_in_is_refused(folder: Path, dtype: str) -> None:
    with pytest.raises(ArgumentError, match="dtype"):
        jmi_models.load(folder, dtype=dtype)


def test_a_gpt2_saved_without_its_head_loads(tmp_path: Path) -> None:
    """As the published one: no prefix, and the causal masks that old versions stored."""
    held = grid.committed("gpt2/plain")
    whole = jmi_models.load(grid.write_folder(tmp_path / "whole", held.config, held.tensors))
    bare = {name.removeprefix("transformer."): value for name, value in held.tensors.items()}
    bare |= {f"h.{i}.attn.bias": np.tri(32, dtype=np.float32)[None, None] for i in range(2)}
    lm = jmi_models.load(grid.write_folder(tmp_path / "bare", held.config, bare))
    jax.tree.map(np.testing.assert_array_equal, lm.params, whole.params)
