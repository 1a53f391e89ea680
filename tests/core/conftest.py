"""Two tiny decoders with random weights, one with grouped heads and biases."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import jmi
import jmi_models
from jmi_models.decoder.attention import Attention
from jmi_models.decoder.mlp import Mlp
from jmi_models.decoder.norms import Norm, Norms
from jmi_models.decoder.positions import Positions
from jmi_models.decoder.rope import Rope
from tests.support.programs import compiled
from tests.support.random_params import random_params


def tiny(n_layers=4, n_kv_heads=2, bias=True, tied=False):
    return jmi_models.Transformer(
        family="llama",
        n_layers=n_layers,
        d_model=16,
        n_heads=4,
        n_kv_heads=n_kv_heads,
        d_head=6,
        d_mlp=24,
        d_vocab=29,
        n_ctx=64,
        norms=Norms(Norm("rms", 1e-5)),
        attn=Attention(6**-0.5, qkv_bias=bias, out_bias=bias),
        mlp=Mlp("silu", bias=bias),
        positions=Positions((Rope(1e4, 6),)),
        tied=tied,
    )


def lively(arch, dtype=jnp.float32):
    """Random parameters large enough that attention is not flat and every bias counts."""
    return random_params(arch, 1, 0.2, dtype)


@pytest.fixture(scope="session")
def arch():
    return tiny()


@pytest.fixture(scope="session")
def params(arch):
    return lively(arch)


@pytest.fixture(scope="session")
def tokens():
    return jnp.asarray(np.random.default_rng(0).integers(0, 29, (2, 7)), jnp.int32)


@pytest.fixture(scope="session")
def lm(arch, params):
    return jmi.LanguageModel(arch, params, name="tiny")


class Programs:
    """How often layers were traced, and how many programs were compiled, since it was last asked."""

    def __init__(self) -> None:
        self.traced, self.before = 0, compiled()

    def __call__(self) -> tuple[int, int]:
        found = self.traced, compiled() - self.before
        self.traced, self.before = 0, compiled()
        return found


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> Programs:
    counts, arch = Programs(), type(tiny())
    block = arch.block

    def counted(self: Any, *args: Any) -> Any:
        counts.traced += 1
        return block(self, *args)

    monkeypatch.setattr(arch, "block", counted)
    return counts
