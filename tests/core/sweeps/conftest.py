"""A small model in float64 with its prompts, and sweeps in small pieces."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jmi
from jmi.sweeps import chunks as sweep_plan
from tests.core.conftest import lively, tiny
from tests.core.sweeps.cells import LENGTH


@pytest.fixture
def small_chunks_count(monkeypatch):
    """Let even these few tokens be worth a chunk of their own, so that cells start behind position 0."""
    monkeypatch.setattr(sweep_plan, "PASS", 0)


@pytest.fixture(scope="module")
def model():
    with jax.enable_x64(True):
        arch = tiny()
        tokens = jnp.asarray(np.random.default_rng(6).integers(0, 29, (2, LENGTH)), jnp.int32)
        yield jmi.LanguageModel(arch, lively(arch, jnp.float64)), tokens
