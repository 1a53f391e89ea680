"""The recurrences of RWKV-6 and RWKV-7 by chunks of tokens, in matrix products.

Axis letters: b batch, n chunks, h heads, i/j/l/m tokens of a chunk (i reads, j is read), g groups
of a chunk's tokens, k key channels, v value channels.

What token i reads of an earlier token j has decayed by every token between them. Quotients of running
products would give those factors, but overflow as decays near 0. Here a chunk is halved again and again:
of two halves, every token of the later reads every one of the earlier through the point where they meet,
so that one matrix product serves all pairs. Its factors are products of decays, which at worst underflow
where the recurrence does; decays of 0 and their gradients are exact.

RWKV-7 also adds along ``add`` what it reads along ``remove``, which depends on what earlier tokens added:
a triangular system for each chunk, inverted for any state the chunk may start from (arXiv:2406.06484). The
inverse grows by halves, too: `solve_triangular` calls a BLAS per head, whose threads wait for each other.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jmi_models.rwkv.wkv import Inputs, Outputs


class _Decays(NamedTuple):
    """Products of decays within groups of tokens.

    Attributes:
      since: ``[n, b, h, g, i, k]``, of all tokens of the group before i.
      until: ``[n, b, h, g, j, k]``, of all after j.
      whole: ``[n, b, h, g, 1, k]``, of all.
    """

    since: jax.Array
    until: jax.Array
    whole: jax.Array


def chunked(x: Inputs, state: jax.Array, size: int = 32) -> Outputs:
    """What one token after another gives from ``state``; ``size``, a power of two, is that of a chunk."""
    length = x.key.shape[1]
    size = min(size, 1 << (length - 1).bit_length())
    key = x.key * x.write[..., None]
    if x.bonus is None:  # y reads after its own token
        queries, own = x.receptance * x.decay, x.receptance * key
    else:
        queries, own = x.receptance, x.receptance * x.key * x.bonus[None, None]
    queries, key, value = _chunks(queries, size), _chunks(key, size), _chunks(x.value, size)
    decays = _groups(_chunks(x.decay, size, 1))
    since, until, whole = (a[:, :, :, 0] for a in decays[-1])

    y = _read(_weights(queries, key, decays, _chunks(own.sum(-1), size)), value)
    written = jnp.einsum("nbhjk,nbhjv->nbhkv", key * until, value)
    if x.remove is None or x.add is None:
        state, starts = _run(state, whole, written)
    else:
        remove, add = _chunks(x.remove, size), _chunks(x.add, size)
        chains = _weights(remove, add, decays, jnp.ones_like(remove[..., 0]), chained=True)
        reads = jnp.einsum("nbhij,nbhjk->nbhik", chains, remove * since)
        found = _read(chains, _read(_weights(remove, key, decays), value))
        state, starts, added = _run_7(state, whole, written, reads, found, add * until)
        own_added = _chunks((x.receptance * x.add).sum(-1), size)
        y = y + _read(_weights(queries, add, decays, own_added), added)
    y = y + jnp.einsum("nbhik,nbhkv->nbhiv", queries * since, starts)
    return Outputs(_tokens(y)[:, :length], state, None, None)


def _run(state: jax.Array, whole: jax.Array, written: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The final state, and the one each chunk starts from."""

    def step(S: jax.Array, xs: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        whole, written = xs
        return jnp.swapaxes(whole, -1, -2) * S + written, S

    return jax.lax.scan(step, state, (whole, written))


def _run_7(
    state: jax.Array, whole: jax.Array, written: jax.Array, reads: jax.Array, found: jax.Array, add: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """As `_run`, and what each token adds along its ``add``."""

    def step(S: jax.Array, xs: tuple[jax.Array, ...]) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        whole, written, reads, found, add = xs
        added = found + jnp.einsum("bhik,bhkv->bhiv", reads, S)
        end = jnp.swapaxes(whole, -1, -2) * S + written + jnp.einsum("bhjk,bhjv->bhkv", add, added)
        return end, (S, added)

    state, (starts, added) = jax.lax.scan(step, state, (whole, written, reads, found, add))
    return state, starts, added


def _groups(decay: jax.Array) -> list[_Decays]:
    """`_Decays` of groups of one token, of two, of four ... of all, for ``decay`` ``[n, b, h, i, k]``."""
    whole = decay[..., None, :]
    found = [_Decays(jnp.ones_like(whole), jnp.ones_like(whole), whole)]
    while found[-1].whole.shape[3] > 1:
        (since, since_2), (until, until_2), (whole, whole_2) = (_halves(a) for a in found[-1])
        since = jnp.concatenate([since, whole * since_2], -2)
        until = jnp.concatenate([until * whole_2, until_2], -2)
        found.append(_Decays(since, until, whole * whole_2))
    return found


def _weights(
    left: jax.Array,
    right: jax.Array,
    groups: list[_Decays],
    own: jax.Array | None = None,
    chained: bool = False,
) -> jax.Array:
    """``sum_k left_i right_j`` times the decays between i and j, ``[n, b, h, i, j]``.

    Args:
      own: the diagonal ``[n, b, h, i]``, 0 when None; above it all is 0.
      chained: sum over all chains of tokens from j to i, of the product of the weights along each. With
        ``own`` 1 this inverts 1 minus the weights.
    """
    own = jnp.zeros(left.shape[:-1], left.dtype) if own is None else own
    found = own[..., None, None]
    for since, until, _ in groups[:-1]:
        _, later = _halves(left.reshape(since.shape) * since)
        earlier, _ = _halves(right.reshape(until.shape) * until)
        first, second = _halves(found)
        across = jnp.einsum("nbhgik,nbhgjk->nbhgij", later, earlier)
        if chained:
            across = jnp.einsum("nbhgil,nbhglm,nbhgmj->nbhgij", second, across, first)
        top = jnp.concatenate([first, jnp.zeros_like(first)], -1)
        found = jnp.concatenate([top, jnp.concatenate([across, second], -1)], -2)
    return found[:, :, :, 0]


def _halves(a: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Of ``a`` ``[n, b, h, g, ...]``, the first group of every two and the second."""
    return a[:, :, :, ::2], a[:, :, :, 1::2]


def _read(weights: jax.Array, value: jax.Array) -> jax.Array:
    return jnp.einsum("nbhij,nbhjv->nbhiv", weights, value)


def _chunks(a: jax.Array, size: int, fill: int = 0) -> jax.Array:
    """``[b, s, h, ...]`` as ``[n, b, h, i, ...]``, filled up so that the last chunk is whole."""
    rest = -a.shape[1] % size
    a = jnp.pad(a, [(0, rest if axis == 1 else 0) for axis in range(a.ndim)], constant_values=fill)
    a = a.reshape(a.shape[0], a.shape[1] // size, size, *a.shape[2:])
    return jnp.moveaxis(a, (1, 3), (0, 2))


def _tokens(a: jax.Array) -> jax.Array:
    """``[n, b, h, i, v]`` as ``[b, s, h, v]``."""
    a = jnp.moveaxis(a, (0, 2), (1, 3))
    return a.reshape(a.shape[0], a.shape[1] * a.shape[2], *a.shape[3:])
