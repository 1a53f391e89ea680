"""What a run returns."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jmi import tree
from jmi.captures.capture import Plan
from jmi.errors import HookError
from jmi.model import padding
from jmi.model.sites import layer_name, split


class Kept(NamedTuple):
    """What is known of the captures under one label.

    Attributes:
      layers: of which they are; None outside the blocks.
      ranks: of what is kept of one layer, for each array of the pytree.
      axis: that of positions in it; None where there is none, or a reducer ran.
    """

    label: str
    layers: tuple[int, ...] | None
    ranks: tuple[int, ...]
    axis: int | None


@tree.dataclass
class Output:
    """Logits and captures of a run: a pytree, so it can leave any jit, vmap or grad.

    ``out[name]`` gives one captured tensor, ``out.stack(point)`` all captured layers of a point, and
    ``out.at(name, position)`` one token of each row. In a padded batch arrays have the padded axis, and what
    stands at padding means nothing.

    Attributes:
      logits: ``[b, s, vocab]``, or ``[b, vocab]`` of a run with ``logits_at=``; None when the run stopped
        before the unembedding.
      captures: label -> array, or what a reducer made of it; block captures have a layer axis in front of the
        site's own axes.
      carry: what flows between layers where the run stopped: the residual stream ``[b, s, d_model]``,
        or for some architectures a dict with it; None when it ran to the end.
      memory: what the positions left behind for later ones, of a run with ``memory=``; else None.
      mask: bool ``[b, s]``, True at the real tokens; None when every place held one.
      kept: what is known of the captures, by label. Static.
      n_layers: of the model. Static.
    """

    logits: jax.Array
    captures: dict[str, Any]
    carry: Any = None
    memory: Any = None
    mask: Any = None
    kept: tuple[Kept, ...] = tree.static(default=())
    n_layers: int = tree.static(default=0)

    def __repr__(self) -> str:
        logits = "no logits" if self.logits is None else f"logits {list(jnp.shape(self.logits))}"
        held = [f"{label} {_shown(value)}" for label, value in self.captures.items()]
        more = [f"and {len(held) - 6} more"] if len(held) > 6 else []
        return f"Output({', '.join([logits, *held[:6], *more])})"

    def __getitem__(self, name: str) -> Any:
        """Captured value of a name (``blocks.5.attn.hook_pattern``), or all of a label or pattern."""
        point, layer = split(name)
        if layer is None or layer == "*":
            return self._labelled(point if layer else name)
        values, kept = self._labelled(point), self._kept(point)
        index = int(layer) + self.n_layers * (int(layer) < 0)
        if kept.layers is None or index not in kept.layers:
            raise HookError(f"{name} was not captured; captured here: {', '.join(self.names())}")
        row, leaves = kept.layers.index(index), jax.tree.leaves(values)
        picked = [jnp.take(x, row, axis=x.ndim - n - 1) for x, n in zip(leaves, kept.ranks, strict=True)]
        return jax.tree.unflatten(jax.tree.structure(values), picked)

    def stack(self, point: str) -> Any:
        """All captured layers of ``hook_resid_post`` or ``attn.hook_z``: ``[layers, ...]``."""
        return self._labelled(point if point in self.captures else split(f"blocks.*.{point}")[0])

    def layers(self, point: str) -> tuple[int, ...]:
        """The layers along the first axis of ``stack(point)``."""
        label = point if point in self.captures else split(f"blocks.*.{point}")[0]
        return self._kept(label).layers or ()

    def at(self, name: str, position: Any) -> jax.Array:
        """What was captured as ``name`` at one token of each row: without the axis of positions (queries).

        Args:
          name: as in ``out[name]``; layers that come stacked stay so.
          position: of a real token, one or ``[b]``, one for each row; negative counts from the end. A
            traced one that a row does not have gives NaN.

        Raises:
          HookError: it was not captured, has no positions, or a reducer may have moved them.
          ArgumentError: a row has no such token.
        """
        values, kept = self[name], self._kept(split(name)[0])
        if kept.axis is None:
            raise HookError(
                f"{name}: what was kept of it has no axis of positions; capture it whole, or reduce it "
                "with jmi.Select(position=...)"
            )
        batch = values.ndim - kept.ranks[0]
        axis = batch + kept.axis
        padding.check_token("position", position, (values.shape[batch], values.shape[axis]), self.mask)
        return _at(values, position, self.mask, batch, axis)

    def names(self) -> list[str]:
        """Every captured name, layers spelled out; a label of the user's own stands once."""
        names = []
        for label, layers, *_ in self.kept:
            spelled = label.startswith("blocks.*.") and layers is not None
            names += [layer_name(label, i) for i in layers or ()] if spelled else [label]
        return names

    def _labelled(self, label: str) -> Any:
        if label not in self.captures:
            known = ", ".join(self.captures) or "nothing"
            raise HookError(f"{label} was not captured; captured here: {known}")
        return self.captures[label]

    def _kept(self, label: str) -> Kept:
        return next(kept for kept in self.kept if kept.label == label)


def _shown(value: Any) -> str:
    """Shapes of a captured value."""
    return ", ".join(str(list(jnp.shape(x))) for x in jax.tree.leaves(value))


def _at(values: jax.Array, position: Any, mask: Any, batch: int, axis: int) -> jax.Array:
    """``values`` at one token of each row, without ``axis``; in front of ``batch`` are layers or runs."""
    if np.ndim(mask) > 2:  # Of runs under a vmap.
        return jax.vmap(lambda v, m: _at(v, position, m, batch - 1, axis - 1))(values, mask)
    rows, size = values.shape[batch], values.shape[axis]
    index = padding.place_of(position, np.ones((rows, size), bool) if mask is None else mask)
    found = padding.take(jnp.moveaxis(values, batch, 0), index[:, None], axis)
    return jnp.moveaxis(found.squeeze(axis), 0, batch)


def wrap(plan: Plan, n_layers: int, logits: Any, found: Sequence[Any], **rest: Any) -> Output:
    """Output of a run whose captures, ``found``, follow ``plan``; ``rest`` are other fields of it."""
    kept = tuple(
        Kept(
            group.label,
            layers,
            tuple(x.ndim - (layers is not None) for x in jax.tree.leaves(value)),
            group.axis,
        )
        for group, layers, value in zip(plan.groups, plan.layers, found, strict=True)
    )
    captures = {group.label: value for group, value in zip(plan.groups, found, strict=True)}
    return Output(logits, captures, kept=kept, n_layers=n_layers, **rest)
