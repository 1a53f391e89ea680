"""The weights of attention heads, of which their circuits are made."""

from typing import TYPE_CHECKING, Any

import jax

if TYPE_CHECKING:
    from jmi_models.decoder.transformer import Transformer


def attention_weights(arch: "Transformer", layer_params: Any) -> dict[str, jax.Array]:
    """``W_Q``, ``W_K``, ``W_V`` and ``W_O`` of one layer (`jmi.model.architecture.Attending`)."""
    return {name: layer_params["attn"][name] for name in ("W_Q", "W_K", "W_V", "W_O")}
