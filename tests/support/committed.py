"""The committed models of the grid: loaded once for each process, and run with every site captured."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import pytest

import jmi_models
from jmi.lm import LanguageModel
from jmi_models.disk.layout import from_disk
from jmi_models.families import family_of
from jmi_models.params import flat, nested
from jmi_models.weights.checkpoint import plan_reads
from tests.oracles import grid
from tests.support import trees


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
    return put_together(held.config, held.tensors, dtype)


def put_together(config: Any, tensors: Any, dtype: str = "float32") -> LanguageModel:
    """What `jmi_models.load` makes of these tensors, made in numpy: nothing is compiled."""
    family = family_of(config)
    arch = family.from_config(config)
    tree, sizes = flat(arch.param_tree()), arch.sizes()
    params = {path: np.zeros(param.shape, dtype) for path, param in tree.items()}
    for name, targets in plan_reads(arch, family, {}).items():
        for target in targets:
            value = from_disk(tensors[name], tree[target.path], target.key, sizes)
            params[target.path][target.index] = value.astype(dtype)
    with jax.enable_x64(dtype == "float64"):
        return LanguageModel(arch, nested(jax.device_put(params)))


def run(lm: Any, tokens: Any, **kwargs: Any) -> dict[str, np.ndarray]:
    """Every site of the model; those inside blocks stacked over layers.

    Prompts without a mask are run as they are: both sides of a comparison with padding must not be padded.
    """
    exact = getattr(tokens, "mask", None) is None
    with jax.enable_x64(lm.dtype == np.float64):
        out = lm.run(tokens, capture=list(lm.arch.sites()), exact=exact, **kwargs)
        return {site: np.asarray(value) for site, value in out.captures.items()}


@functools.cache
def every_site(name: str, dtype: str) -> dict[str, np.ndarray]:
    """Every site on the committed prompt; in float64 with the layers as a list, else stacked."""
    lm = load(name, dtype)
    return run(listed(lm) if dtype == "float64" else lm, grid.committed(name).tokens)


def listed(lm: LanguageModel) -> LanguageModel:
    """The same model with the parameters of its layers as a list."""
    with jax.enable_x64(lm.dtype == np.float64):
        return dataclasses.replace(lm, params=trees.listed(lm.params))
