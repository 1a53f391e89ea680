"""The committed models of the grid: loaded once for each process, and run with every site captured."""

import dataclasses
import functools
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import jmi_models
from jmi.lm import LanguageModel
from jmi_models.families import family_of
from tests.oracles import grid


def each(names: Any) -> Any:
    """One test per config; those of one config run in one process, which then compiles it once."""
    return pytest.mark.parametrize(
        "name", [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in names]
    )


def relative(got: Any, want: Any) -> float:
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape
    return float(np.abs(got - want).max() / np.abs(want).max())


def arch_of(name: str) -> jmi_models.Transformer:
    """The architecture of a config of the grid."""
    return family_of(grid.GRID[name]).from_config(grid.GRID[name])


@functools.cache
def load(name: str, dtype: str = "float32") -> LanguageModel:
    """The committed model of a config."""
    held = grid.committed(name)
    return load_tensors(held.config, held.tensors, dtype)


def load_tensors(config: Any, tensors: Any, dtype: str) -> LanguageModel:
    with tempfile.TemporaryDirectory() as folder, jax.enable_x64(dtype == "float64"):
        return jmi_models.load(grid.write_folder(Path(folder), config, tensors), dtype=dtype)


def run(lm: Any, tokens: Any, **kwargs: Any) -> dict[str, np.ndarray]:
    """Every site of the model; those inside blocks stacked over layers."""
    with jax.enable_x64(lm.dtype == np.float64):
        out = lm.run(tokens, capture=list(lm.arch.sites()), **kwargs)
        return {site: np.asarray(value) for site, value in out.captures.items()}


@functools.cache
def every_site(name: str, dtype: str) -> dict[str, np.ndarray]:
    """Every site on the committed prompt; in float64 with the layers as a list, else stacked."""
    lm = load(name, dtype)
    return run(listed(lm) if dtype == "float64" else lm, grid.committed(name).tokens)


def listed(lm: LanguageModel) -> LanguageModel:
    """The same model with the parameters of its layers as a list."""
    with jax.enable_x64(lm.dtype == np.float64):
        return dataclasses.replace(lm, params=jmi_models.listed(lm.params))
