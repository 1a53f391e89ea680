"""Lengths: prompts run at few of them, so that one of a new length compiles nothing.

Prompts are padded to the next of few lengths. To their tokens that is nothing, for a mask says so, and what
comes back is cut to their own length; runs whose arrays come back are padded at the end, so that these begin
as they would. Where something has an entry for each place, or does not say that it takes padding
(`jmi.engine.takes_padding`), prompts run as they are.

Axis letters: b batch, s positions.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jmi.captures.capture import CARRY, Group, Plan, reduced
from jmi.captures.output import Output
from jmi.engine.takes_padding import Held, same_beside_padding
from jmi.hooks.layers import PerLayer
from jmi.model.inputs import Prompts, is_known
from jmi.model.sites import table_of

SHORTEST = 16
"""Lengths are the powers of two from here on, and the whole context of a model."""

AFFORDABLE = {"cpu": 3e11, "other": 3e13}
"""Operations that a device may spend on padding, rather than compile: some seconds of two CPU cores."""


def length_for(
    arch: Any, params: Any, prompts: Prompts, held: Iterable[Held], *, copies: int = 1, more: int = 0
) -> int | None:
    """The length at which prompts run; None where that must be their own, or padding would cost too much.

    Args:
      held: hooks, reducers and metrics of the run.
      copies: how often the prompts run.
      more: how many tokens follow them.
    """
    batch, own = prompts.shape
    leaves = jax.tree.leaves((params, prompts))
    if not getattr(arch, "takes_padding", False) or prompts.positions is not None or not is_known(leaves):
        return None
    arrays = [x for x in leaves if isinstance(x, jax.Array)]
    if len({device for x in (*arrays[:1], *arrays[-2:]) for device in x.devices()}) > 1:
        return None
    length = rounded(own)
    if getattr(arch, "n_ctx", None) is not None:
        length = min(length, arch.n_ctx - more)
    fits = own <= length and affordable(params, batch * (length - own) * copies)
    dtype = jax.tree.leaves(params)[0].dtype
    return length if fits and all(same_beside_padding(one, batch, dtype) for one in held) else None


def rooms_for(
    arch: Any, params: Any, prompts: Prompts, count: int, held: Iterable[Held]
) -> tuple[int, int] | None:
    """The length of prompts that are continued, and the room for new tokens; None as `length_for`."""
    length = length_for(arch, params, prompts, held, more=count)
    if length is None:
        return None
    room = rounded(count)
    if getattr(arch, "n_ctx", None) is not None:
        room = min(room, arch.n_ctx - length)
    return length, room


def padded(prompts: Prompts, length: int, *, left: bool = False) -> Prompts:
    """Prompts of ``length``, with a mask, padded at their end or on the left."""
    more = length - prompts.shape[1]
    width = (more, 0) if left else (0, more)
    tokens = np.asarray(prompts.tokens)
    mask = np.ones(prompts.shape, bool) if prompts.mask is None else np.asarray(prompts.mask)
    beside = [(0, 0)] * (tokens.ndim - 2)
    return Prompts(np.pad(tokens, [(0, 0), width, *beside]), np.pad(mask, [(0, 0), width]))


def roomy(arch: Any, params: Any, prompts: Prompts, held: Iterable[Held], *, copies: int = 1) -> Prompts:
    """Prompts at the length at which they run, padded on the left; as they are where `length_for` says so."""
    length = length_for(arch, params, prompts, held, copies=copies)
    return prompts if length is None else padded(prompts, length, left=True)


def rounded(count: int) -> int:
    """The next of few lengths: the power of two that is not below it, nor below `SHORTEST`."""
    return max(SHORTEST, 1 << (count - 1).bit_length())


def affordable(params: Any, tokens: int) -> bool:
    """Whether a model may run so many tokens for nothing, rather than compile."""
    leaves = jax.tree.leaves(params)
    placed = next((x for x in leaves if isinstance(x, jax.Array)), None)
    kind = jax.default_backend() if placed is None else next(iter(placed.devices())).platform
    return 2.0 * sum(np.size(x) for x in leaves) * tokens <= AFFORDABLE.get(kind, AFFORDABLE["other"])


def cut(out: Output, layout: Plan, arch: Any, prompts: Prompts) -> Output:
    """What a run of padded prompts gave, as of the ``prompts`` themselves."""
    captures = {
        group.label: _cut_capture(out.captures[group.label], arch, group, reduce, prompts, out.logits.dtype)
        for group, (_, reduce) in zip(layout.groups, layout.data, strict=True)
    }
    logits = out.logits
    if logits is not None and logits.ndim == 3:
        logits = beginning(logits, (logits.shape[0], prompts.shape[1], logits.shape[2]))
    return dataclasses.replace(out, logits=logits, captures=captures, mask=prompts.mask)


def _cut_capture(values: Any, arch: Any, group: Group, reduce: Any, prompts: Prompts, dtype: Any) -> Any:
    """What a capture keeps of the ``prompts`` themselves."""
    lead = () if group.count is None else (group.count,)
    if group.point == CARRY:
        return jax.tree.map(lambda x: beginning(x, (*lead, *prompts.shape, *x.shape[3:])), values)
    kept = _kept(arch, group, reduce, prompts.shape, dtype)
    return jax.tree.map(lambda x, like: beginning(x, (*lead, *like.shape)), values, kept)


def has_places(arch: Any, layout: Plan, prompts: Prompts, dtype: Any) -> bool:
    """Whether something captured has another shape at another length."""
    batch, length = prompts.shape
    return any(
        group.point == CARRY
        or _kept(arch, group, reduce, (batch, length), dtype)
        != _kept(arch, group, reduce, (batch, length + 1), dtype)
        for group, (_, reduce) in zip(layout.groups, layout.data, strict=True)
    )


def _kept(arch: Any, group: Group, reduce: Any, shape: tuple[int, int], dtype: Any) -> Any:
    """Shapes of what a capture keeps of one layer, of prompts of ``shape``."""
    site = table_of(arch)[group.point]
    value = jax.ShapeDtypeStruct(site.shape(*shape), dtype)
    if reduce is None:
        return value
    if isinstance(reduce, PerLayer):
        reduce = jax.tree.map(lambda x: x[0] if jnp.ndim(x) else x, reduce.hook)
    here = dataclasses.replace(site, layer=np.int32(0), mask=np.ones(shape, bool))
    return jax.eval_shape(lambda value: reduced(reduce, value, here), value)


def beginning(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The first entries of ``x`` along every axis. In numpy: on a device each shape would be a program."""
    if x.shape == shape:
        return x
    part = np.asarray(x)[tuple(map(slice, shape))]
    # What was bound to no device may still be combined with arrays on any.
    return jax.device_put(part, x.sharding if x.committed else None)
