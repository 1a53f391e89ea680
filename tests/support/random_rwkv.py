"""RWKV-6 and RWKV-7 with random weights, and the prompt that tests run them on."""

import functools

import jax
import numpy as np
import pytest

from jmi.lm import LanguageModel
from jmi_models.rwkv.architecture import Rwkv
from tests.support.random_params import random_params

ARCHS = {
    6: Rwkv(6, 3, 24, 2, 12, 40, 31, (("rank_mix", 4), ("rank_decay", 5))),
    7: Rwkv(7, 3, 24, 2, 12, 40, 31, (("rank_decay", 5), ("rank_a", 4), ("rank_v", 3), ("rank_gate", 6))),
}
VERSIONS = [pytest.param(v, marks=pytest.mark.xdist_group(f"rwkv{v}")) for v in ARCHS]
TOKENS = np.random.default_rng(0).integers(0, 31, (2, 8)).astype(np.int32)

each = pytest.mark.parametrize("version", VERSIONS)


@functools.cache
def load(version: int, dtype: str = "float64") -> LanguageModel:
    """Random weights in which every part of the model counts."""
    with jax.enable_x64(dtype == "float64"):
        return LanguageModel(ARCHS[version], random_params(ARCHS[version], version, 0.3, dtype))
