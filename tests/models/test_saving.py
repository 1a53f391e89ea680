"""Saving: what is written loads again bit by bit, and nothing is written that could not."""

from pathlib import Path

import jax
import numpy as np
import pytest

import jmi_models
from jmi.errors import ConfigError
from tests.oracles import llama_grid

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


def test_saving_under_a_foreign_config_is_refused(tmp_path: Path) -> None:
    lm = jmi_models.load(llama_grid.write_folder(tmp_path / "in", CONFIG))
    with pytest.raises(ConfigError, match="another architecture"):
        jmi_models.save(tmp_path / "out", lm.arch, lm.params, {**CONFIG, "rms_norm_eps": 1e-3})
    assert not (tmp_path / "out").exists()
