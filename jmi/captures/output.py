"""What a run returns."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jmi import tree
from jmi.captures.capture import Plan
from jmi.engine.recurrence import LABEL
from jmi.errors import HookError
from jmi.model import padding
from jmi.model.sites import layer_name, split

Kept = tuple[str, tuple[int, ...] | None, int, int | None]
"""Of one label: the layers, and of one captured array the rank and the axis of positions."""


@tree.dataclass
class Output:
    """Logits and captures of a run: a pytree, so it can leave any jit, vmap or grad.

    ``out[name]`` gives one captured tensor, ``out.stack(point)`` all captured layers of a point, and
    ``out.at(name, position)`` one token of each row. In a padded batch arrays have the padded axis, and what
    stands at padding means nothing.

    Attributes:
      logits: ``[b, s, vocab]``, or ``[b, vocab]`` of a run with ``logits_at=``; None when the run stopped
        before the unembedding.
      captures: label -> array; block captures have a layer axis in front of the site's own axes.
      carry: what flows between layers where the run stopped: the residual stream ``[b, s, d_model]``,
        or for some architectures a dict with it; None when it ran to the end.
      state: of a recurrent model that was given one, the state after the last token; else None.
      mask: bool ``[b, s]``, True at the real tokens; None when every place held one.
      kept: per label, the captured layers, and the rank and the axis of positions of one captured array
        (None where there is none, or a reducer ran). Static.
      n_layers: of the model. Static.
    """

    logits: jax.Array
    captures: dict[str, jax.Array]
    carry: Any = None
    state: dict[str, jax.Array] | None = None
    mask: Any = None
    kept: tuple[Kept, ...] = struct.field(pytree_node=False, default=())
    n_layers: int = struct.field(pytree_node=False, default=0)

    def __getitem__(self, name: str) -> jax.Array:
        """Captured tensor of a name (``blocks.5.attn.hook_pattern``), or all of a label or pattern."""
        point, layer = split(name)
        if layer is None or layer == "*":
            return self._labelled(point if layer else name)
        values = self._labelled(point)
        layers, rank, _ = self._kept(point)
        index = int(layer) + self.n_layers * (int(layer) < 0)
        if layers is None or index not in layers:
            raise HookError(f"{name} was not captured; captured here: {', '.join(self.names())}")
        return jnp.take(values, layers.index(index), axis=values.ndim - rank - 1)

    def stack(self, point: str) -> jax.Array:
        """All captured layers of ``hook_resid_post`` or ``attn.hook_z``: ``[layers, ...]``."""
        return self._labelled(point if point in self.captures else split(f"blocks.*.{point}")[0])

    def layers(self, point: str) -> tuple[int, ...]:
        """The layers along the first axis of ``stack(point)``."""
        label = point if point in self.captures else split(f"blocks.*.{point}")[0]
        return self._kept(label)[0] or ()

    def at(self, name: str, position: Any) -> jax.Array:
        """What was captured as ``name`` at one token of each row: without the axis of positions (queries).

        Args:
          name: as in ``out[name]``; layers that come stacked stay so.
          position: of a real token, one or ``[b]``, one for each row; negative counts from the end. A
            traced one that a row does not have gives NaN.

        Raises:
          HookError: it was not captured, has no positions, or a reducer may have moved them.
          ConfigError: a row has no such token.
        """
        values, (_, rank, axis) = self[name], self._kept(split(name)[0])
        if axis is None:
            raise HookError(
                f"{name}: what was kept of it has no axis of positions; capture it whole, or reduce it "
                "with jmi.Select(position=...)"
            )
        batch = values.ndim - rank
        padding.check_token(
            "position", position, (values.shape[batch], values.shape[batch + axis]), self.mask
        )
        return _at(values, position, self.mask, batch, batch + axis)

    def names(self) -> list[str]:
        """Every captured name, layers spelled out; a label of the user's own stands once."""
        names = []
        for label, layers, *_ in self.kept:
            spelled = label.startswith("blocks.*.") and layers is not None
            names += [layer_name(label, i) for i in layers or ()] if spelled else [label]
        return names

    def _labelled(self, label: str) -> jax.Array:
        if label not in self.captures:
            known = ", ".join(self.captures) or "nothing"
            raise HookError(f"{label} was not captured; captured here: {known}")
        return self.captures[label]

    def _kept(self, label: str) -> tuple[tuple[int, ...] | None, int, int | None]:
        return next((layers, rank, axis) for name, layers, rank, axis in self.kept if name == label)


def _at(values: jax.Array, position: Any, mask: Any, batch: int, axis: int) -> jax.Array:
    """``values`` at one token of each row, without ``axis``; in front of ``batch`` are layers or runs."""
    if np.ndim(mask) > 2:  # Of runs under a vmap.
        return jax.vmap(lambda v, m: _at(v, position, m, batch - 1, axis - 1))(values, mask)
    rows, size = values.shape[batch], values.shape[axis]
    index = padding.place_of(position, np.ones((rows, size), bool) if mask is None else mask)
    found = padding.take(jnp.moveaxis(values, batch, 0), index[:, None], axis)
    return jnp.moveaxis(found.squeeze(axis), 0, batch)


def wrap(
    plan: Plan, n_layers: int, logits: Any, arrays: tuple[jax.Array, ...], carry: Any, mask: Any = None
) -> Output:
    """Output of a run with ``mask`` whose captured ``arrays`` follow ``plan``."""
    kept = tuple(
        (group.label, layers, array.ndim - (layers is not None), group.axis)
        for group, layers, array in zip(plan.groups, plan.layers, arrays, strict=True)
    )
    captures = {group.label: array for group, array in zip(plan.groups, arrays, strict=True)}
    state = {
        label.removeprefix(LABEL): captures.pop(label) for label in list(captures) if label.startswith(LABEL)
    }
    kept = tuple(entry for entry in kept if entry[0] in captures)
    return Output(logits, captures, carry, state or None, mask, kept, n_layers)
