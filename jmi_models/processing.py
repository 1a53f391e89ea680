"""Weight processing: the same function of the tokens in weights that are easier to read.

Every processing maps ``(arch, params)`` to a new pair and leaves its arguments as they are: to undo
it, keep the old pair. Layers may be stacked or listed. Sums are taken in float64 where parameters or
``jax_enable_x64`` have it, else in at least float32, and cast back. A model of which the promise holds
already (no gain, no value bias) comes back as it was; where it cannot hold, a ArgumentError says why.

Sites keep their names and follow the new weights: ``attn.hook_in`` of a model whose gains are folded
is the value without gain, ``hook_resid_pre`` of a centred one has mean zero.

Axis letters: d model width, g key/value heads, r query heads per key/value head, k head width,
v vocabulary. Functions named ``block`` see one layer, without its axis.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jmi.checks import check_params
from jmi.errors import ArgumentError
from jmi.model.architecture import Params, runs_of
from jmi.numerics import wide
from jmi_models.decoder.transformer import Transformer
from jmi_models.params import HasParams, Param, check_describes, flat

Processing = Callable[[Transformer, Params], tuple[Transformer, Params]]


def _of_transformers(process: Processing) -> Processing:
    """``process``, which says so when it is given another kind of model."""

    @functools.wraps(process)
    def checked(arch: Transformer, params: Params) -> tuple[Transformer, Params]:
        if not isinstance(arch, Transformer):
            raise ArgumentError(f"{process.__name__}: only transformers can be processed so")
        return process(arch, params)

    return checked


@_of_transformers
def fold_norm_gains(arch: Transformer, params: Params) -> tuple[Transformer, Params]:
    """Gains and biases of ln1, ln2 and ln_final moved into the matrices that read them.

    A module that reads ``n * gain + bias`` through ``W`` ``[d, ...]`` and ``b`` reads ``n`` through
    ``W' = gain[:, None] * W`` and ``b' = b + bias @ W``: queries, keys and values; gate and linear
    branch; router, every expert, the shared expert and its gate; the unembedding, or where the
    embedding is narrower than the model, the projection before it. Gemma's gain is ``1 + w``.
    Logits are unchanged, and ``ln1.hook_normalized`` equals ``attn.hook_in``.

    Returns:
      The architecture, its norm without gain and bias, untied, with the biases that the fold needs
      (``b_out`` comes with ``b_in`` and is zero); and its parameters.

    Raises:
      ArgumentError: the output of a norm is in the residual stream (OLMo 2, Gemma 2 and 3, OPT 350m,
        BLOOM's embedding), where no single matrix reads it, and all norms of a model are of one
        kind; or the norms of a mixture have biases.
    """
    norm = arch.norms.norm
    if norm.gain == "none" and not norm.bias:
        return arch, params
    reasons = {
        "the output of a post-norm is added to the residual stream": arch.norms.written,
        "the output of its norms is the residual stream itself": arch.norms.in_stream,
        "its normalised embedding is the residual stream itself": arch.norms.embed,
        "a mixture after norms with biases is not implemented": norm.bias and arch.experts is not None,
    }
    check_applies("fold_norm_gains", arch, params, reasons)
    if arch.d_embed is None:
        arch, params = _untied(arch, params)
    norms = dataclasses.replace(arch.norms, norm=dataclasses.replace(norm, gain="none", bias=False))
    folded = dataclasses.replace(arch, norms=norms)
    if norm.bias:
        attn, mlp = dataclasses.replace(arch.attn, qkv_bias=True), dataclasses.replace(arch.mlp, bias=True)
        folded = dataclasses.replace(folded, attn=attn, mlp=mlp, unembed_bias=True)
    return folded, _gains_folded(arch, folded.param_tree(), params)


def _gains_folded(arch: Transformer, tree: Any, params: Params) -> Params:
    def block(p: Any) -> Any:
        norms = {"attn": p["ln1"], "mlp": p["ln1" if arch.norms.shared else "ln2"]}
        return {name: _absorbed(arch, norms[name], p[name], tree["blocks"][name]) for name in norms}

    final, head = params["ln_final"], params.get("unembed", {})
    head = _absorbed(arch, final, head, tree["unembed"])
    if arch.norms.norm.bias and arch.d_embed is not None:
        w_u = params["embed"]["W_E"].T if arch.tied else params["unembed"]["W_U"]
        head["b_U"] = _shifted(head["b_U"], _shifted(None, final["b"], params["unembed"]["W_out"], 0), w_u, 0)
    kept = {name: value for name, value in params.items() if name != "ln_final"}
    return {**kept, "blocks": _each_layer(block, params["blocks"]), "unembed": head}


def _absorbed(arch: Transformer, norm: Any, p: Any, tree: Any) -> dict[str, Any]:
    """Parameters ``p`` of a module that reads ``norm``, with it moved in, in the structure of ``tree``."""
    out = dict(p)
    for name, param in tree.items():
        bias = f"b{name[1:]}"
        if isinstance(param, dict):
            out[name] = _absorbed(arch, norm, p[name], param)
        elif "d_model" in param.axes[:-1]:
            axis = param.axes.index("d_model") - len(param.axes)
            out[name] = _scaled(p[name], norm["w"], axis, arch.norms.norm.gain == "1 + w")
            if arch.norms.norm.bias and bias in tree:
                out[bias] = _shifted(p.get(bias), norm["b"], p[name], axis)
    for name in (name for name in tree if name not in out):
        param = tree[name]
        shape = param.shape[1:] if param.axes[0] == "n_layers" else param.shape
        out[name] = jnp.zeros(shape, norm["w"].dtype)
    return out


@functools.partial(jax.jit, static_argnums=(2, 3))
def _scaled(weight: jax.Array, gain: jax.Array, axis: int, plus_one: bool) -> jax.Array:
    """``weight`` times ``gain`` (plus one) along ``axis``, counted from the last."""
    factor = 1 + _up(gain) if plus_one else _up(gain)
    others = [i for i in range(weight.ndim) if i != weight.ndim + axis]
    return (_up(weight) * jnp.expand_dims(factor, others)).astype(weight.dtype)


@functools.partial(jax.jit, static_argnums=3)
def _shifted(bias: jax.Array | None, x: jax.Array, weight: jax.Array, axis: int) -> jax.Array:
    """``bias`` plus what ``weight`` makes of ``x`` along ``axis``."""
    shift = jnp.tensordot(_up(x), _up(weight), ((0,), (axis,)), precision="highest")
    return (shift if bias is None else _up(bias) + shift).astype(weight.dtype)


@_of_transformers
def centre_writing_weights(arch: Transformer, params: Params) -> tuple[Transformer, Params]:
    """Everything that writes to the residual stream centred, so that the stream has mean zero.

    ``W' = W - mean_d W`` over the model width of W_E, W_pos, W_O, b_O, W_out and b_out, of those of
    every expert, and of ``embed.W_in`` instead of W_E where the embedding is narrower than the model.
    All that reads the stream is a layer norm, which subtracts the mean: logits are unchanged.

    Returns:
      The architecture, untied (the unembedding stays as it was), and the centred parameters.

    Raises:
      ArgumentError: the stream is read by RMSNorm or unnormalised, or a norm writes to it: the mean of
        what a norm writes depends on the input, and no change of weights takes it away.
    """
    reasons = {
        "RMSNorm reads the mean of the residual stream": arch.norms.norm.kind == "rms",
        "its modules read the residual stream unnormalised": not arch.norms.read,
        "its post-norms write to the residual stream": arch.norms.written,
        "the norm of its embedding writes to the residual stream": arch.norms.embed,
    }
    check_applies("centre_writing_weights", arch, params, reasons)
    if arch.d_embed is None:
        arch, params = _untied(arch, params)

    def change(path: str, param: Param, layer: Any, x: jax.Array) -> jax.Array:
        # The gain and bias of a norm, "w" and "b", lie over the width as well.
        writes = param.axes[-1] == "d_model" and path.split(".")[-1].startswith(("W_", "b_"))
        return _centred(x) if writes else x

    return arch, each_param(change, arch, params)


@_of_transformers
def centre_unembedding(arch: Transformer, params: Params) -> tuple[Transformer, Params]:
    """The unembedding with mean zero over the vocabulary.

    ``W_U' = W_U - mean_v W_U`` and ``b_U' = b_U - mean_v b_U``: the logits of a position become
    ``logits - mean_v logits``, and log-probabilities are unchanged.

    Returns:
      The architecture, untied (the embedding stays as it was), and the parameters.

    Raises:
      ArgumentError: logits are soft-capped. The cap is not linear: a constant added to all logits
        before it is no constant after it, and probabilities would change.
    """
    reasons = {"after its soft-cap a shift of logits is not a shift": arch.logit_softcap is not None}
    check_applies("centre_unembedding", arch, params, reasons)
    arch, params = _untied(arch, params)
    head = {name: _centred(x) if name in ("W_U", "b_U") else x for name, x in params["unembed"].items()}
    return arch, {**params, "unembed": head}


@_of_transformers
def fold_value_biases(arch: Transformer, params: Params) -> tuple[Transformer, Params]:
    """Value biases moved into the bias of the attention output.

    Attention weights sum to 1, so a head's value bias passes through them unchanged:
    ``b_O' = b_O + sum_h b_V[g(h)] @ W_O[h]``, where ``g(h)`` is the key/value head of ``h``, and
    ``b_V' = 0`` (it stays, since one flag of the architecture stands for the biases of queries, keys
    and values). Logits are unchanged; an intervention that makes the weights of a query sum to
    something else, such as a knockout of all its keys, no longer acts on the bias.

    Returns:
      The architecture with ``out_bias``, and the parameters.

    Raises:
      ArgumentError: beside sinks, weights sum to less than 1; with ``clip_qkv``, values are clamped
        after the bias is added.
    """
    if not arch.attn.qkv_bias:
        return arch, params
    reasons = {
        "its sinks make attention weights sum to less than 1": arch.attn.sinks,
        "its values are clamped after the bias is added": arch.attn.clip_qkv is not None,
    }
    check_applies("fold_value_biases", arch, params, reasons)

    def block(p: Any) -> Any:
        attn = p["attn"]
        b_o = _value_bias_written(attn.get("b_O"), attn["b_V"], attn["W_O"])
        return {**p, "attn": {**attn, "b_V": jnp.zeros_like(attn["b_V"]), "b_O": b_o}}

    folded = {**params, "blocks": _each_layer(block, params["blocks"])}
    return dataclasses.replace(arch, attn=dataclasses.replace(arch.attn, out_bias=True)), folded


@jax.jit
def _value_bias_written(b_o: jax.Array | None, b_v: jax.Array, w_o: jax.Array) -> jax.Array:
    grouped = _up(w_o).reshape(len(b_v), -1, *w_o.shape[1:])
    written = jnp.einsum("gk,grkd->d", _up(b_v), grouped, precision="highest")
    return (written if b_o is None else _up(b_o) + written).astype(w_o.dtype)


def check_applies(processing: str, arch: Any, params: Params, reasons: dict[str, bool]) -> None:
    """ArgumentError for a reason that holds, or for parameters of another architecture."""
    check_describes(arch)
    check_params(params)
    kinds = {"its layers are of several kinds": len(runs_of(arch)) > 1}
    why = [reason for reason, holds in (reasons | kinds).items() if holds]
    if why:
        raise ArgumentError(f"{processing} does not apply to this {arch.family} model: {'; '.join(why)}")
    given = {_path(keys) for keys, _ in jax.tree_util.tree_leaves_with_path(params)}
    wrong = given ^ flat(arch.param_tree()).keys()
    if wrong:
        raise ArgumentError(f"{processing}: these are not the parameters of arch: {', '.join(sorted(wrong))}")


def _untied(arch: Transformer, params: Params) -> tuple[Transformer, Params]:
    """The same model with an unembedding of its own."""
    if not arch.tied:
        return arch, params
    head = {**params.get("unembed", {}), "W_U": params["embed"]["W_E"].T}
    return dataclasses.replace(arch, tied=False), {**params, "unembed": head}


def _each_layer(block: Callable[[Any], Any], blocks: Any) -> Any:
    """``block`` of the parameters of every layer, stacked or listed."""
    return [block(p) for p in blocks] if isinstance(blocks, (list, tuple)) else jax.vmap(block)(blocks)


def each_param(change: Callable[..., jax.Array], arch: HasParams, params: Params) -> Params:
    """``change(dotted path, Param, index of a listed layer or None, value)`` of every parameter."""
    tree = flat(arch.param_tree())

    def one(keys: Any, x: jax.Array) -> jax.Array:
        layer = next((key.idx for key in keys if isinstance(key, jax.tree_util.SequenceKey)), None)
        return change(_path(keys), tree[_path(keys)], layer, x)

    return jax.tree_util.tree_map_with_path(one, params)


def _path(keys: Any) -> str:
    return ".".join(key.key for key in keys if isinstance(key, jax.tree_util.DictKey))


def _up(x: jax.Array) -> jax.Array:
    """``x`` in float64 where there is such, else in at least float32."""
    return x.astype(max(wide(x.dtype), jnp.result_type(float), key=lambda dtype: dtype.itemsize))


@jax.jit
def _centred(x: jax.Array) -> jax.Array:
    """``x`` minus its mean over the last axis."""
    return (_up(x) - jnp.mean(_up(x), -1, keepdims=True)).astype(x.dtype)
