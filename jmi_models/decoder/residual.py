"""What each part of the decoder adds to the residual stream, and how logits read the stream.

With the denominators of its norms held at those of one run (``ln1_post.hook_scale``,
``ln2_post.hook_scale``, ``ln_final.hook_scale``), every map here is linear plus a constant: the mean
that a layer norm subtracts is linear, its bias is constant. Results are in at least float32.

Axis letters: b batch, s sequence, d model width, e embedding width, h heads, k head width, m MLP
width, n chosen neurons, v vocabulary.
"""

from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from jmi.engine.forward import precise
from jmi.errors import ArgumentError
from jmi.numerics import wide
from jmi_models.decoder.norms import Norm

if TYPE_CHECKING:
    from jmi_models.decoder.transformer import Transformer
    from jmi_models.rwkv.architecture import Rwkv

    Reads: TypeAlias = Transformer | Rwkv


@precise()
def head_outputs(
    arch: "Transformer", layer_params: Any, z: jax.Array, denominator: jax.Array | None = None
) -> jax.Array:
    """What each head adds to the stream, ``[b, s, h, d]``; with `attn_constant` it sums to ``hook_attn_out``.

    Args:
      layer_params: parameters of one layer.
      z: ``attn.hook_z`` ``[b, s, h, k]`` of that layer.
      denominator: ``ln1_post.hook_scale`` ``[b, s, 1]``, where the output of attention is normalised.

    Raises:
      ArgumentError: the family normalises the output of attention and ``denominator`` is missing.
    """
    out = jnp.einsum("bshk,hkd->bshd", _wide(z), _wide(layer_params["attn"]["W_O"]))
    divisor = None if denominator is None else denominator[:, :, None]
    return _written(arch, layer_params, "ln1_post", out, divisor)


@precise()
def head_effects(
    arch: "Transformer",
    layer_params: Any,
    z: jax.Array,
    direction: jax.Array,
    denominator: jax.Array | None = None,
) -> jax.Array:
    """`head_outputs` times ``direction`` ``[b, s, d]``: ``[b, s, h]``, and nothing of width h d is made."""
    back = _pulled_back(arch, layer_params, "ln1_post", direction, denominator)
    back = jnp.einsum("hkd,bsd->bshk", _wide(layer_params["attn"]["W_O"]), back)
    return jnp.einsum("bshk,bshk->bsh", _wide(z), back)


def attn_constant(arch: "Transformer", layer_params: Any, denominator: jax.Array | None = None) -> jax.Array:
    """What attention adds whatever its heads do (biases of output and post-norm), ``[b or 1, s or 1, d]``."""
    attn = layer_params["attn"]
    return _constant(arch, layer_params, "ln1_post", attn["W_O"], attn.get("b_O"), denominator)


@precise()
def neuron_outputs(
    arch: "Transformer",
    layer_params: Any,
    post: jax.Array,
    units: jax.Array,
    denominator: jax.Array | None = None,
) -> jax.Array:
    """What the neurons ``units`` ``[n]`` add to the stream, ``[b, s, n, d]``.

    All of them and `mlp_constant` sum to ``hook_mlp_out``.

    Args:
      layer_params: parameters of one layer.
      post: ``mlp.hook_post`` ``[b, s, m]`` of that layer.
      denominator: ``ln2_post.hook_scale`` ``[b, s, 1]``, where the output of the MLP is normalised.

    Raises:
      ArgumentError: ``denominator`` is missing, or the model has a mixture in place of neurons.
    """
    weight = jnp.take(_wide(_w_out(arch, layer_params)), units, axis=0)
    out = jnp.einsum("bsn,nd->bsnd", jnp.take(_wide(post), units, axis=-1), weight)
    divisor = None if denominator is None else denominator[:, :, None]
    return _written(arch, layer_params, "ln2_post", out, divisor)


@precise()
def neuron_effects(
    arch: "Transformer",
    layer_params: Any,
    post: jax.Array,
    direction: jax.Array,
    denominator: jax.Array | None = None,
) -> jax.Array:
    """What every neuron adds, times ``direction`` ``[b, s, d]``: ``[b, s, m]``, nothing wider is made."""
    back = _pulled_back(arch, layer_params, "ln2_post", direction, denominator)
    return _wide(post) * jnp.einsum("md,bsd->bsm", _wide(_w_out(arch, layer_params)), back)


def mlp_constant(arch: "Transformer", layer_params: Any, denominator: jax.Array | None = None) -> jax.Array:
    """What the MLP adds whatever its neurons do, ``[b or 1, s or 1, d]``; as `attn_constant`."""
    weight = _w_out(arch, layer_params)
    return _constant(arch, layer_params, "ln2_post", weight, layer_params["mlp"].get("b_out"), denominator)


@precise()
def to_logits(arch: "Reads", params: Any, x: jax.Array, denominator: jax.Array | None = None) -> jax.Array:
    """What a part ``x`` ``[b, s, d]`` of the final stream gives of the logits, ``[b, s, v]``.

    The parts of a sum that is the stream, with `logit_constant`, sum to the logits before any soft-cap.

    Args:
      denominator: ``ln_final.hook_scale`` ``[b, s, 1]``; None where a model has no final norm.
    """
    x = _wide(x)
    if not arch.norms.in_stream:
        x = _gained(arch.norms.norm, params.get("ln_final"), _centred(arch.norms.norm, x)) / _given(
            denominator, "ln_final"
        )
    return _unembedded(arch, params, x)


@precise()
def logit_constant(arch: "Reads", params: Any) -> jax.Array:
    """What the logits have whatever the stream is, ``[v]``: biases of final norm and unembedding."""
    p = params.get("unembed", {})
    dtype = wide(params["embed"]["W_E"].dtype)
    bias = _norm_bias(arch, params)
    logits = jnp.zeros(arch.d_vocab, dtype) if bias is None else _unembedded(arch, params, bias)
    return logits + _times(_wide(p["b_U"]), arch.logit_scale) if "b_U" in p else logits


class Direction(NamedTuple):
    """A logit, or a difference of two, as read from the stream: ``x @ vector / denominator + constant``.

    ``x`` is the final residual stream and ``denominator`` its ``ln_final.hook_scale`` (1 where a model
    has no final norm); the logit is the one before any soft-cap.

    Attributes:
      vector: ``[..., d]``.
      constant: ``[...]``.
    """

    vector: jax.Array
    constant: jax.Array


def direction(arch: "Reads", params: Any, tokens: Any, others: Any = None) -> Direction:
    """The direction whose dot product with the stream is the logit of ``tokens``, or ``tokens - others``.

    The gain and mean subtraction of the final norm, the projection to the embedding width and the
    multiplier of logits are in it, so no component is ever multiplied with the whole vocabulary.

    Args:
      tokens, others: token ids of any one shape ``[...]``.

    Example:
      >>> import jmi_models
      >>> lm = jmi_models.load("atlas")
      >>> points = ["blocks.-1.hook_resid_post", "ln_final.hook_scale"]
      >>> out = lm.run("The capital of France is", capture=points)
      >>> paris = lm.arch.direction(lm.params, lm.token_id("Paris"))
      >>> read = out["blocks.-1.hook_resid_post"] / out["ln_final.hook_scale"]
      >>> (read @ paris.vector + paris.constant).shape
      (1, 6)
    """
    one = _direction(arch, params, jnp.asarray(tokens))
    if others is None:
        return one
    return Direction(
        *(a - b for a, b in zip(one, _direction(arch, params, jnp.asarray(others)), strict=True))
    )


@precise()
def _direction(arch: "Reads", params: Any, tokens: jax.Array) -> Direction:
    p = params.get("unembed", {})
    if arch.tied:
        vector = _wide(jnp.take(params["embed"]["W_E"], tokens, axis=0))
    else:
        vector = _wide(jnp.moveaxis(jnp.take(p["W_U"], tokens, axis=1), 0, -1))
    if arch.d_embed is not None:
        vector = jnp.einsum("...e,de->...d", vector, _wide(p["W_out"]))
    constant = jnp.zeros(tokens.shape, vector.dtype)
    bias = _norm_bias(arch, params)
    if bias is not None:
        constant = jnp.einsum("...d,d->...", vector, bias)
    if "b_U" in p:
        constant = constant + _wide(jnp.take(p["b_U"], tokens))
    if not arch.norms.in_stream:
        vector = _centred(arch.norms.norm, _gained(arch.norms.norm, params.get("ln_final"), vector))
    return Direction(_times(vector, arch.logit_scale), _times(constant, arch.logit_scale))


def _unembedded(arch: "Reads", params: Any, x: jax.Array) -> jax.Array:
    """``x`` ``[..., d]``, a part of the final norm's output, as a part of the logits ``[..., v]``."""
    p = params.get("unembed", {})
    if arch.d_embed is not None:
        x = jnp.einsum("...d,de->...e", x, _wide(p["W_out"]))
    if arch.tied:
        logits = jnp.einsum("...e,ve->...v", x, _wide(params["embed"]["W_E"]))
    else:
        logits = jnp.einsum("...e,ev->...v", x, _wide(p["W_U"]))
    return _times(logits, arch.logit_scale)


def _norm_bias(arch: "Reads", params: Any) -> jax.Array | None:
    has = arch.norms.norm.bias and not arch.norms.in_stream
    return _wide(params["ln_final"]["b"]) if has else None


def _written(
    arch: "Transformer", layer_params: Any, name: str, x: jax.Array, denominator: jax.Array | None
) -> jax.Array:
    """What a part ``x`` ``[..., d]`` of a module's output adds to the stream."""
    if arch.norms.written:
        x = _gained(arch.norms.norm, layer_params.get(name), _centred(arch.norms.norm, x)) / _given(
            denominator, name
        )
    return _times(x, arch.residual_scale)


def _pulled_back(
    arch: "Transformer", layer_params: Any, name: str, direction: jax.Array, denominator: jax.Array | None
) -> jax.Array:
    """The transpose of `_written`: the direction in a module's output that becomes ``direction``."""
    x = _times(_wide(direction), arch.residual_scale)
    if arch.norms.written:
        x = _centred(arch.norms.norm, _gained(arch.norms.norm, layer_params.get(name), x)) / _given(
            denominator, name
        )
    return x


def _constant(
    arch: "Transformer",
    layer_params: Any,
    name: str,
    weight: jax.Array,
    bias: jax.Array | None,
    denominator: jax.Array | None,
) -> jax.Array:
    """What a module's own bias and that of its post-norm add to the stream."""
    own = jnp.zeros((1, 1, arch.d_model), wide(weight.dtype)) if bias is None else _wide(bias)[None, None]
    added = _written(arch, layer_params, name, own, denominator)
    if arch.norms.written and arch.norms.norm.bias:
        added = added + _times(_wide(layer_params[name]["b"]), arch.residual_scale)[None, None]
    return added


def _w_out(arch: "Transformer", layer_params: Any) -> jax.Array:
    if arch.experts is not None:
        raise ArgumentError(
            f"this {arch.family} model has a mixture of experts: it has no mlp.hook_post to split"
        )
    return layer_params["mlp"]["W_out"]


def _given(denominator: jax.Array | None, name: str) -> jax.Array:
    if denominator is None:
        raise ArgumentError(
            f"{name} normalises what is added: give denominator=, its {name}.hook_scale of the run"
        )
    return _wide(denominator)


def _centred(norm: Norm, x: jax.Array) -> jax.Array:
    """What ``norm`` divides, a linear map that is its own transpose."""
    return x - jnp.mean(x, -1, keepdims=True) if norm.kind == "layer" else x


def _gained(norm: Norm, p: Any, x: jax.Array) -> jax.Array:
    if norm.gain == "none":
        return x
    gain = _wide(p["w"])[(None,) * (x.ndim - 1)]
    return x * (1 + gain if norm.gain == "1 + w" else gain)


def _times(x: jax.Array, factor: float) -> jax.Array:
    return x if factor == 1 else x * jnp.asarray(factor, x.dtype)


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(wide(x.dtype))
