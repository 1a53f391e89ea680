"""Saving: what is written loads again bit by bit, and nothing is written that could not."""

import resource
import signal
from pathlib import Path

import jax
import numpy as np
import pytest

import jmi_models
from jmi.errors import ArgumentError, OutputError
from jmi_models.families import family_of
from jmi_models.loading import read_config
from tests.oracles import grid, llama_grid

CONFIG = llama_grid.GRID["attention_bias"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", ["all_biases", "odd_head_dim", "multi_query_tied"])
def test_saved_model_loads_bit_by_bit(tmp_path: Path, name: str, dtype: str) -> None:
    config = llama_grid.GRID[name]
    first = jmi_models.load(llama_grid.write_folder(tmp_path / "first", config), dtype=dtype)
    jmi_models.save(tmp_path / "second", first.arch, first.params, config)
    second = jmi_models.load(tmp_path / "second", dtype=dtype)
    assert second.arch == first.arch
    assert second.dtype == first.dtype == np.dtype(dtype)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(second.params), jax.device_get(first.params))


@pytest.mark.parametrize("name", ["qwen3_moe/normalised", "qwen2_moe/sparse_step"])
def test_listed_layers_are_saved_as_stacked_ones(tmp_path: Path, name: str) -> None:
    config = grid.GRID[name]
    arch = family_of(config).from_config(config)
    params = jmi_models.init(arch, 0)
    jmi_models.save(tmp_path, arch, jmi_models.listed(params), config)
    again = jmi_models.load(tmp_path)
    assert again.arch == arch
    jax.tree.map(np.testing.assert_array_equal, again.params, params)
    with pytest.raises(ArgumentError, match="lists 1 layers"):
        jmi_models.save(tmp_path, arch, {**params, "blocks": [{}]}, config)


def test_saving_under_a_foreign_config_is_refused(tmp_path: Path) -> None:
    lm = jmi_models.load(llama_grid.write_folder(tmp_path / "in", CONFIG))
    with pytest.raises(ArgumentError, match="another architecture"):
        jmi_models.save(tmp_path / "out", lm.arch, lm.params, {**CONFIG, "rms_norm_eps": 1e-3})
    assert not (tmp_path / "out").exists()


def test_a_separate_head_of_a_tied_config_is_saved_and_loads_again(tmp_path: Path) -> None:
    config = llama_grid.GRID["multi_query_tied"]
    weights = llama_grid.tensors(config)
    weights["lm_head.weight"] = 2 * weights["model.embed_tokens.weight"]
    first = jmi_models.load(llama_grid.write_folder(tmp_path / "first", config, weights))
    jmi_models.save(tmp_path / "second", first.arch, first.params, config)
    second = jmi_models.load(tmp_path / "second")
    assert not first.arch.tied
    assert second.arch == first.arch
    jax.tree.map(np.testing.assert_array_equal, second.params, first.params)


def test_the_tokenizer_is_saved_with_the_model(tmp_path: Path) -> None:
    atlas = jmi_models.load("atlas")
    config = read_config(jmi_models.embedded.MODELS["atlas"])
    jmi_models.save(tmp_path, atlas.arch, atlas.params, config, atlas.tokenizer)
    again = jmi_models.load(tmp_path)
    text = "The capital of France is Paris"
    np.testing.assert_array_equal(again.encode(text), atlas.encode(text))
    assert again.tokenizer.special == atlas.tokenizer.special


def test_parameters_of_another_shape_are_not_saved(tmp_path: Path) -> None:
    lm = jmi_models.load(llama_grid.write_folder(tmp_path / "in", CONFIG))
    params = {**lm.params, "ln_final": {"w": np.ones(23, np.float32)}}
    with pytest.raises(ArgumentError, match=r"ln_final\.w \(23,\)"):
        jmi_models.save(tmp_path / "out", lm.arch, params, CONFIG)
    assert not (tmp_path / "out").exists()


def test_a_sharded_checkpoint_is_not_overwritten_by_half(tmp_path: Path) -> None:
    lm = jmi_models.load(llama_grid.write_folder(tmp_path / "in", CONFIG))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ArgumentError, match="sharded"):
        jmi_models.save(tmp_path / "out", lm.arch, lm.params, CONFIG)
    assert len(list((tmp_path / "out").iterdir())) == 1


def test_a_full_disk_is_one_error_and_the_model_that_was_there_stays(tmp_path: Path) -> None:
    """A limit on the size of files fails as a full disk does."""
    lm = jmi_models.load(llama_grid.write_folder(tmp_path, CONFIG))
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OutputError, match=r"model\.safetensors could not be written"):
            jmi_models.save(tmp_path, lm.arch, lm.params, CONFIG)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
