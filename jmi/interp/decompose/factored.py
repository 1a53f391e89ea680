"""Circuits of attention heads as matrices of low rank, kept as their factors.

A head writes ``x W_V W_O`` of what it attends to, and scores a query against a key by
``x_q W_Q W_K^T x_k^T`` (Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits";
vectors are rows). Each of the two is a product of ``[d, k]`` and ``[k, d]`` that is never formed
unless asked for.

The matrices are the weights as they are. To have the gains of the norms in them, fold those first
(`jmi_models.fold_norm_gains`). Scores are before their scale, biases, soft-cap and rotation: under
rotary embedding ``W_Q W_K^T`` is the score of a key at the query's own position; where queries and
keys are normalised, scores are no bilinear form, and the matrix says which directions match but not
how strongly.

Axis letters: m rows, n columns, r rank, d model width, g key/value heads, h query heads, k head
width, l layers, v vocabulary; later ones of two heads p layers, q heads, j head width.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jmi import tree
from jmi.checks import choice, whole_number
from jmi.engine.forward import precise
from jmi.engine.layers import segments
from jmi.engine.programs import compiled
from jmi.errors import ArgumentError
from jmi.lm import LanguageModel, check_lm
from jmi.model.architecture import Architecture, Params, require
from jmi.model.sites import table_of
from jmi.numerics import wide


class SVD(NamedTuple):
    """``(U * S[..., None, :]) @ Vh``, singular values from the largest on."""

    U: jax.Array
    S: jax.Array
    Vh: jax.Array


@tree.dataclass
class FactoredMatrix:
    """The matrices ``A @ B``, ``[..., m, n]``, as ``A`` ``[..., m, r]`` and ``B`` ``[..., r, n]``; a pytree.

    Nothing but `full` makes a matrix of m x n: norms, traces, singular values and eigenvalues follow
    from matrices with a side of r. They are computed in at least float32.

    Example:
      >>> import jax.numpy as jnp
      >>> from jmi.interp.decompose.factored import FactoredMatrix
      >>> ones = FactoredMatrix(jnp.ones((1000, 1)), jnp.ones((1, 1000)))
      >>> round(float(ones.norm()), 1), float(ones.trace())
      (1000.0, 1000.0)
    """

    A: jax.Array
    B: jax.Array

    # numpy then leaves ``array @ self`` to `__rmatmul__`.
    __array_ufunc__ = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the product, ``[..., m, n]``."""
        return (*self.A.shape[:-1], self.B.shape[-1])

    @property
    def T(self) -> "FactoredMatrix":
        """The transposed matrices."""
        return FactoredMatrix(jnp.swapaxes(self.B, -1, -2), jnp.swapaxes(self.A, -1, -2))

    def __getitem__(self, index: Any) -> "FactoredMatrix":
        """An index of the leading axes: ``ov[layer, head]``."""
        picked = FactoredMatrix(self.A[index], self.B[index])
        if (picked.A.shape[-2:], picked.B.shape[-2:]) != (self.A.shape[-2:], self.B.shape[-2:]):
            raise ArgumentError(f"{index!r} reaches into the matrices; index their leading axes, or full()")
        return picked

    @precise()
    def full(self) -> jax.Array:
        """The product, ``[..., m, n]``."""
        return jnp.matmul(self.A, self.B)

    @precise()
    def __matmul__(self, other: Any) -> Any:
        """Times a vector ``[n]``: ``[..., m]``; times a matrix or a FactoredMatrix: a FactoredMatrix."""
        if isinstance(other, FactoredMatrix):
            inner = jnp.matmul(self.B, other.A)
            if self.A.shape[-1] <= other.A.shape[-1]:
                return FactoredMatrix(self.A, jnp.matmul(inner, other.B))
            return FactoredMatrix(jnp.matmul(self.A, inner), other.B)
        right = jnp.matmul(self.B, jnp.asarray(other))
        if jnp.ndim(other) == 1:
            return jnp.matmul(self.A, right[..., None])[..., 0]
        return FactoredMatrix(self.A, right)

    @precise()
    def __rmatmul__(self, other: Any) -> Any:
        """A vector ``[m]`` times this: ``[..., n]``; a matrix times this: a FactoredMatrix."""
        left = jnp.matmul(jnp.asarray(other), self.A)
        if jnp.ndim(other) == 1:
            return jnp.matmul(left[..., None, :], self.B)[..., 0, :]
        return FactoredMatrix(left, self.B)

    @precise()
    def norm(self) -> jax.Array:
        """Frobenius norm, ``[...]``."""
        return jnp.linalg.norm(jnp.matmul(_triangle(self.A), _wide(self.B)), axis=(-2, -1))

    @precise()
    def trace(self) -> jax.Array:
        """Sum of the diagonal of square matrices, ``[...]``."""
        return jnp.einsum("...mr,...rm->...", _wide(self.A), _wide(self.B))

    @precise()
    def svd(self) -> SVD:
        """Vectors ``[..., m, r]`` and ``[..., r, n]``, values ``[..., r]``; r is at most m and n."""
        left, a = jnp.linalg.qr(_wide(self.A))
        right, b = jnp.linalg.qr(_wide(jnp.swapaxes(self.B, -1, -2)))
        u, s, vh = jnp.linalg.svd(jnp.matmul(a, jnp.swapaxes(b, -1, -2)), full_matrices=False)
        return SVD(jnp.matmul(left, u), s, jnp.matmul(vh, jnp.swapaxes(right, -1, -2)))

    def singular_values(self) -> jax.Array:
        """From the largest on, ``[..., r]``; all further ones of the product are zero."""
        return self.svd().S

    @precise()
    def eigenvalues(self) -> jax.Array:
        """Eigenvalues of square matrices, complex ``[..., r]`` in no order; all further ones are zero.

        They are those of the small ``B @ A``. Not every accelerator has an eigensolver: run this on the
        CPU there, under ``jax.default_device``.
        """
        return jnp.linalg.eigvals(jnp.matmul(_wide(self.B), _wide(self.A)))


def _triangle(x: jax.Array) -> jax.Array:
    """``R`` ``[..., r, r]`` with ``|R y| = |x y|`` for every ``y``."""
    return jnp.linalg.qr(_wide(x), mode="r")


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(wide(x.dtype))


def ov_circuits(lm: LanguageModel) -> FactoredMatrix:
    """``W_V W_O`` of every head, ``[l, h, d, d]``: what it writes of what it attends to.

    Query heads that share a value head have its ``W_V`` each.

    Raises:
      ArgumentError: a model without attention heads.

    Example:
      >>> import jmi_models
      >>> from jmi.interp.decompose.factored import ov_circuits
      >>> lm = jmi_models.load("atlas")
      >>> ov = ov_circuits(lm)
      >>> ov.singular_values().shape == (lm.arch.n_layers, lm.arch.n_heads, lm.arch.d_head)
      True
    """
    return _ov(check_lm(lm).arch, lm.params)


def qk_circuits(lm: LanguageModel) -> FactoredMatrix:
    """``W_Q W_K^T`` of every head, ``[l, h, d, d]``, query side first; as `ov_circuits`."""
    return _qk(check_lm(lm).arch, lm.params)


def _ov(arch: Architecture, params: Params) -> FactoredMatrix:
    w_o = _weights(arch, params, "W_O")
    return FactoredMatrix(_per_head(_weights(arch, params, "W_V"), w_o.shape[1]), w_o)


def _qk(arch: Architecture, params: Params) -> FactoredMatrix:
    w_q = jnp.moveaxis(_weights(arch, params, "W_Q"), 2, 1)
    return FactoredMatrix(w_q, jnp.swapaxes(_per_head(_weights(arch, params, "W_K"), w_q.shape[1]), -1, -2))


@precise()
def full_ov_circuit(lm: LanguageModel, layer: Any, head: Any) -> FactoredMatrix:
    """``W_E W_V W_O W_U`` of one head, ``[v, v]``: what a token attended to gives the logit of each token.

    The embedding is as it enters the stream (``hook_embed``), the unembedding as it reads the final
    stream: with the gain and mean subtraction of the final norm, before its division.

    Args:
      layer, head: indices, possibly traced.

    Raises:
      ArgumentError: no such layer or head; a model without attention heads, or that does not say how
        logits read its stream.
    """
    arch, params = check_lm(lm).arch, lm.params
    reads = require(arch, "direction")
    embedding = _embedding(lm)
    vocabulary = jnp.arange(len(embedding), dtype=jnp.int32)
    unembedding = reads.direction(params, vocabulary)[0].T
    w_v, w_o = (_of_head(arch, params, name, layer, head) for name in ("W_V", "W_O"))
    return FactoredMatrix(embedding @ w_v, w_o @ unembedding)


@precise()
def full_qk_circuit(lm: LanguageModel, layer: Any, head: Any) -> FactoredMatrix:
    """``W_E W_Q W_K^T W_E^T`` of one head, ``[v, v]``: the score of each query token for each key token.

    Arguments and errors as `full_ov_circuit`.
    """
    arch, params = check_lm(lm).arch, lm.params
    embedding = _embedding(lm)
    w_q, w_k = (_of_head(arch, params, name, layer, head) for name in ("W_Q", "W_K"))
    return FactoredMatrix(embedding @ w_q, (embedding @ w_k).T)


def composition_scores(lm: LanguageModel, kind: Literal["Q", "K", "V"]) -> jax.Array:
    """How much each head reads of what each head of an earlier layer writes: ``[l, h, p, q]``.

    ``|M N| / (|M| |N|)`` in Frobenius norms, from 0 to 1, where ``M = W_V W_O`` of the earlier head and
    ``N`` is how the later one reads: ``W_Q W_K^T`` with its queries, the transpose with its keys,
    ``W_V W_O`` with its values (Elhage et al. 2021). Zero unless layer l is before layer p.

    Raises:
      ArgumentError: a model without attention heads.
    """
    choice("kind", kind, ("Q", "K", "V"))
    return _compositions(check_lm(lm).arch, lm.params, kind)


@compiled(static=(0, 2))
def _compositions(arch: Architecture, params: Params, kind: str) -> jax.Array:
    writing, qk = _ov(arch, params), _qk(arch, params)
    reading = {"Q": qk, "K": qk.T, "V": writing}[kind]
    with precise():
        # |A B C D| = |(R_A B)(C R_D^T)|, where R_A and R_D are the triangles of A and D^T.
        wrote = jnp.matmul(_triangle(writing.A), _wide(writing.B))
        read = jnp.matmul(_wide(reading.A), jnp.swapaxes(_triangle(reading.T.A), -1, -2))
        read = jnp.moveaxis(read, 2, 0)
        # One earlier head after another: the products of all pairs would not fit.
        norms = jax.lax.map(
            lambda x: jnp.linalg.norm(jnp.einsum("kd,dpqj->kpqj", x, read), axis=(0, -1)),
            wrote.reshape(-1, *wrote.shape[2:]),
        )
    lengths = jnp.linalg.norm(wrote, axis=(-2, -1)), jnp.linalg.norm(read, axis=(0, -1))
    scale = lengths[0][:, :, None, None] * lengths[1][None, None]
    layers = jnp.arange(arch.n_layers, dtype=jnp.int32)
    earlier = (layers[:, None] < layers[None])[:, None, :, None] & (scale > 0)
    return jnp.where(earlier, norms.reshape(scale.shape) / jnp.where(earlier, scale, 1), 0)


def _weights(arch: Architecture, params: Params, name: str) -> jax.Array:
    """A weight of attention, ``[l, ...]``, of layers that are stacked or listed."""
    of_layer = lambda layer: require(arch, "attention_weights").attention_weights(layer)[name]  # noqa: E731
    stacks = [
        jnp.stack([of_layer(layer) for layer in part.params])
        if isinstance(part.params, (list, tuple))
        else jax.vmap(of_layer)(part.params)
        for part in segments(arch, params["blocks"])
    ]
    return stacks[0] if len(stacks) == 1 else jnp.concatenate(stacks)


def _per_head(weight: jax.Array, n_heads: int) -> jax.Array:
    """``[l, h, d, k]`` from the weights ``[l, d, g, k]`` of key/value heads."""
    shared = jnp.arange(n_heads, dtype=jnp.int32) // (n_heads // weight.shape[2])
    return jnp.take(jnp.moveaxis(weight, 2, 1), shared, axis=1)


def _of_head(arch: Architecture, params: Params, name: str, layer: Any, head: Any) -> jax.Array:
    """A weight of one head, ``[d, k]``, of ``W_O`` ``[k, d]``; those of other heads are not copied."""
    weight, n_heads = _weights(arch, params, name), _weights(arch, params, "W_O").shape[1]
    for what, index, size in (("layer", layer, arch.n_layers), ("head", head, n_heads)):
        if not isinstance(index, jax.core.Tracer):
            whole_number(what, index, -size, size - 1)
    axis = 0 if name == "W_O" else 1
    of_layer = jnp.take(weight, layer, axis=0)
    return _wide(jnp.take(of_layer, head // (n_heads // of_layer.shape[axis]), axis=axis))


def _embedding(lm: LanguageModel) -> jax.Array:
    """What enters the stream for each token of the vocabulary, ``[v, d]``."""
    n_tokens = table_of(lm.arch)["hook_logits"].sizes[-1] or 0
    vocabulary = np.arange(n_tokens, dtype=np.int32)[:, None]
    out = lm.run(vocabulary, capture=["hook_embed"], stop_at_layer=0)
    return _wide(out["hook_embed"][:, 0])
