"""Random decoders of well-known shapes, and a forward pass without the engine to compare with."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

import jmi
import jmi_models
from jmi.model.tap import SILENT
from jmi_models.decoder.attention import Attention
from jmi_models.decoder.mlp import Mlp
from jmi_models.decoder.norms import Norm, Norms
from jmi_models.decoder.positions import Positions
from jmi_models.decoder.rope import Rope


def decoder(n_layers: int, d_model: int, n_heads: int, d_mlp: int, d_vocab: int) -> jmi_models.Transformer:
    """A Llama-style decoder of the given size."""
    d_head = d_model // n_heads
    return jmi_models.Transformer(
        family="llama",
        n_layers=n_layers,
        d_model=d_model,
        n_heads=n_heads,
        n_kv_heads=n_heads,
        d_head=d_head,
        d_mlp=d_mlp,
        d_vocab=d_vocab,
        n_ctx=1024,
        norms=Norms(Norm("rms", 1e-5)),
        attn=Attention(d_head**-0.5),
        mlp=Mlp("silu"),
        positions=Positions((Rope(1e4, d_head),)),
        tied=True,
    )


# A gated MLP of width 2048 has the parameters of GPT-2 small's plain one of width 3072.
GPT2_SMALL = decoder(12, 768, 12, 2048, 50257)
TINY = decoder(12, 32, 4, 64, 512)


@functools.partial(jax.jit, static_argnums=0)
def plain_forward(arch: jmi_models.Transformer, params: Any, tokens: jax.Array) -> jax.Array:
    """Logits by a bare scan over the layers: no engine, no hooks, no captures."""
    tap = SILENT
    with jax.default_matmul_precision("highest"):
        context = arch.context(params, jmi.Prompts(tokens))

        def layer(carry: jax.Array, xs: Any) -> tuple[jax.Array, None]:
            inside = SILENT
            return arch.block(xs[1], carry, context, xs[0], inside), None

        index = jnp.arange(arch.n_layers, dtype=jnp.int32)
        carry = arch.embed(params, jmi.Prompts(tokens), context, tap)
        carry, _ = jax.lax.scan(layer, carry, (index, params["blocks"]))
        return arch.unembed(params, carry, tap)
