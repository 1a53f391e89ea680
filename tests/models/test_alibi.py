"""Alibi of both families that have it, against their own builders."""

import importlib

import jax.numpy as jnp
import numpy as np
import pytest

from jmi_models.decoder.positions import Alibi
from tests.support.tolerances import assert_agree

BUILDERS = {
    "bloom": Alibi(),
    "falcon": Alibi(scaled=True, rounded=True),
}


@pytest.mark.oracle
@pytest.mark.parametrize("n_heads", [1, 6, 8, 16, 71])
@pytest.mark.parametrize("family", BUILDERS)
def test_biases_are_hugging_faces(family: str, n_heads: int) -> None:
    torch = pytest.importorskip("torch", reason="the live oracle needs torch")
    pytest.importorskip("transformers", reason="the live oracle needs transformers")
    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    length = 300
    want = module.build_alibi_tensor(torch.ones(1, length, dtype=torch.int64), n_heads, torch.float32)
    got = BUILDERS[family].bias(n_heads, jnp.arange(length)[None], jnp.float32)
    # BLOOM's slopes are powers taken in float32; Falcon rounds away what that costs.
    assert_agree(np.asarray(got)[0, :, 0], want.numpy().reshape(n_heads, length), "oracle")
