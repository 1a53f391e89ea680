"""What a run returns."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jmi import pytrees
from jmi.captures import Plan
from jmi.errors import HookError
from jmi.recurrence import LABEL
from jmi.sites import layer_name, split


@pytrees.dataclass
class Output:
    """Logits and captures of a run: a pytree, so it can leave any jit, vmap or grad.

    ``out[name]`` gives one captured tensor, ``out.stack(point)`` all captured layers of a point.

    Attributes:
      logits: ``[b, s, vocab]``, or ``[b, vocab]`` of a run with ``logits_at=``; None when the run stopped
        before the unembedding.
      captures: label -> array; block captures have a layer axis in front of the site's own axes.
      carry: what flows between layers where the run stopped: the residual stream ``[b, s, d_model]``,
        or for some architectures a dict with it; None when it ran to the end.
      state: of a recurrent model that was given one, the state after the last token; else None.
      kept: per label, the captured layers and the rank of one captured array. Static.
      n_layers: of the model. Static.
    """

    logits: jax.Array
    captures: dict[str, jax.Array]
    carry: Any = None
    state: dict[str, jax.Array] | None = None
    kept: tuple[tuple[str, tuple[int, ...] | None, int], ...] = struct.field(pytree_node=False, default=())
    n_layers: int = struct.field(pytree_node=False, default=0)

    def __getitem__(self, name: str) -> jax.Array:
        """Captured tensor of a name (``blocks.5.attn.hook_pattern``), or all of a label or pattern."""
        point, layer = split(name)
        if layer is None or layer == "*":
            return self._labelled(point if layer else name)
        values = self._labelled(point)
        layers, rank = self._kept(point)
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

    def names(self) -> list[str]:
        """Every captured name, layers spelled out; a label of the user's own stands once."""
        names = []
        for label, layers, _ in self.kept:
            spelled = label.startswith("blocks.*.") and layers is not None
            names += [layer_name(label, i) for i in layers or ()] if spelled else [label]
        return names

    def _labelled(self, label: str) -> jax.Array:
        if label not in self.captures:
            known = ", ".join(self.captures) or "nothing"
            raise HookError(f"{label} was not captured; captured here: {known}")
        return self.captures[label]

    def _kept(self, label: str) -> tuple[tuple[int, ...] | None, int]:
        return next((layers, rank) for name, layers, rank in self.kept if name == label)


def wrap(plan: Plan, n_layers: int, logits: Any, arrays: tuple[jax.Array, ...], carry: Any) -> Output:
    """Output of a run whose captured ``arrays`` follow ``plan``."""
    kept = tuple(
        (group.label, layers, array.ndim - (layers is not None))
        for group, layers, array in zip(plan.groups, plan.layers, arrays, strict=True)
    )
    captures = {group.label: array for group, array in zip(plan.groups, arrays, strict=True)}
    state = {
        label.removeprefix(LABEL): captures.pop(label) for label in list(captures) if label.startswith(LABEL)
    }
    kept = tuple(entry for entry in kept if entry[0] in captures)
    return Output(logits, captures, carry, state or None, kept, n_layers)
