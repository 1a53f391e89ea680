"""What an architecture says of its residual stream, so that it can be taken apart and attributed.

Axis letters: b batch, p positions, d model width, h heads, k head width, m MLP width.
"""

from typing import Any, Protocol

import jax

from jmi.errors import ConfigError
from jmi.model.architecture import Params


class Attributable(Protocol):
    """Methods that an architecture may have: ``direction`` for whole layers, the rest for heads and neurons.

    ``layer_params`` are those of one layer; ``denominator`` is the ``hook_scale`` ``[b, p, 1]`` of the norm
    behind the module (``ln1_post``, ``ln2_post``), None where there is none.
    """

    def direction(self, params: Params, tokens: Any, others: Any = None) -> tuple[jax.Array, jax.Array]:
        """Vector ``[..., d]`` and constant ``[...]``: stream @ vector / ln_final.hook_scale + constant."""
        ...

    def head_outputs(self, layer_params: Any, z: jax.Array, denominator: Any) -> jax.Array:
        """What each head adds to the stream, ``[b, p, h, d]`` from ``attn.hook_z`` ``[b, p, h, k]``."""
        ...

    def head_effects(self, layer_params: Any, z: jax.Array, vector: jax.Array, denominator: Any) -> jax.Array:
        """The same times ``vector`` ``[b, p, d]``: ``[b, p, h]``."""
        ...

    def attn_constant(self, layer_params: Any, denominator: Any) -> jax.Array:
        """What attention adds besides its heads, broadcastable to ``[b, p, d]``."""
        ...

    def neuron_effects(
        self, layer_params: Any, post: jax.Array, vector: jax.Array, denominator: Any
    ) -> jax.Array:
        """What each neuron adds times ``vector``: ``[b, p, m]`` from ``mlp.hook_post`` ``[b, p, m]``."""
        ...

    def mlp_constant(self, layer_params: Any, denominator: Any) -> jax.Array:
        """What the MLP adds besides its neurons, broadcastable to ``[b, p, d]``."""
        ...


def require(arch: Any, method: str) -> Attributable:
    """``arch``, found to have a method of `Attributable`; else ConfigError."""
    if not hasattr(arch, method):
        name = getattr(arch, "family", type(arch).__name__)
        raise ConfigError(f"{name}: this needs an architecture with {method}(), see {__name__}.Attributable")
    return arch
