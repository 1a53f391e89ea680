"""The MLP of the generic decoder.

Axis letters: b batch, s sequence, d model width, m MLP width.
"""

import dataclasses
from typing import Any

import jax

from jmi.model.tap import Tap
from jmi_models.decoder import ops, rounding


@dataclasses.dataclass(frozen=True)
class Mlp:
    """An MLP, beyond its width.

    Attributes:
      act_fn: Hugging Face name of the activation.
      gated: an activated and a linear branch are multiplied.
      bias: its projections have biases.
    """

    act_fn: str
    gated: bool = True
    bias: bool = False


def perceptron(spec: Mlp, p: Any, x: jax.Array, tap: Tap) -> jax.Array:
    """Output ``[b, s, d]`` of the MLP on ``x`` ``[b, s, d]``."""
    linear = rounding.project("bsd,dm->bsm", x, p, "W_in", "b_in")
    if spec.gated:
        gate = tap("mlp.hook_pre", rounding.project("bsd,dm->bsm", x, p, "W_gate", "b_gate"))
        post = ops.activated(spec.act_fn, gate, tap("mlp.hook_pre_linear", linear))
    else:
        post = ops.activated(spec.act_fn, tap("mlp.hook_pre", linear))
    post = tap("mlp.hook_post", post)
    return rounding.project("bsm,md->bsd", post, p, "W_out", "b_out")
