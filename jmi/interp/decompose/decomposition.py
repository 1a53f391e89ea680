"""The final residual stream of a run as the sum of what each part of the model wrote to it.

Labels are TransformerLens's. Axis letters: b batch, p chosen positions, d model width, l layers, h heads,
k head width, n parts of a module (heads or neurons), m MLP width.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jmi import tree
from jmi.captures.capture import Capture
from jmi.captures.output import Output
from jmi.captures.reducers import Positions
from jmi.checks import as_array, choice
from jmi.engine.forward import precise
from jmi.engine.layers import over_layers
from jmi.engine.programs import compiled
from jmi.errors import ArgumentError
from jmi.hooks.resolve import Hooks, named
from jmi.interp.results import Result, array, short
from jmi.lm import LanguageModel, check_lm
from jmi.model.architecture import Architecture, Params, require
from jmi.model.inputs import Prompts, checked
from jmi.model.sites import table_of
from jmi.numerics import wide


@tree.dataclass
class Decomposition(Result):
    """Parts that sum to the final residual stream, or to a logit; a pytree.

    Each part ends in the axes ``[b, p, d]`` of the stream or ``[b, p]`` of a logit, without ``p`` where
    one position was asked for.

    Attributes:
      parts: by name. ``embed`` and ``pos_embed``; with a leading axis of layers ``attn_out`` and
        ``mlp_out``, or in their place ``heads`` ``[l, h, ...]`` and ``neurons`` ``[l, m, ...]``;
        ``bias``, what attention adds besides its heads or the MLP besides its neurons, summed over
        layers; ``hooks``, where the run had any: what they added to the stream besides changing the
        other parts; ``constant``, of a logit whatever the stream.
    """

    parts: dict[str, jax.Array]

    def __repr__(self) -> str:
        return short(self, **self.parts)

    def _held(self) -> dict[str, Any]:
        values = self.stack()
        # A stream has a last axis of its own, and no part that is the same whatever the stream.
        own = ["part", "batch", "position", *([] if "constant" in self.parts else ["d_model"])]
        if values.ndim < len(own):
            own.remove("position")
        return {"labels": {"part": self.labels()}, "values": array(own, values)}

    def labels(self) -> list[str]:
        """Name of each part of `stack`: ``embed``, ``0_attn_out``, ``L0H3``, ``L0N17``, ``bias``."""
        layered = self._layered()
        n_layers = len(next(iter(layered.values())))
        inside = [
            _LABELS[name].format(i, j)
            for i in range(n_layers)
            for name, x in layered.items()
            for j in range(x.shape[1])
        ]
        return [*self._named(*_FIRST), *inside, *self._named(*_LAST)]

    def stack(self) -> jax.Array:
        """Every part, ``[parts, ...]``, layer after layer."""
        layered = jnp.concatenate(list(self._layered().values()), axis=1)
        first, last = ([x[None] for x in self._named(*names).values()] for names in (_FIRST, _LAST))
        return jnp.concatenate([*first, layered.reshape(-1, *layered.shape[2:]), *last])

    def total(self) -> jax.Array:
        """The sum of all parts: the final residual stream, or the logit."""
        rank = self.parts["embed"].ndim
        return functools.reduce(jnp.add, (x.sum(tuple(range(x.ndim - rank))) for x in self.parts.values()))

    def _layered(self) -> dict[str, jax.Array]:
        """The parts of layers, ``[l, n, ...]``."""
        split = ("heads", "neurons")
        return {name: x if name in split else x[:, None] for name, x in self._named(*_LABELS).items()}

    def _named(self, *names: str) -> dict[str, jax.Array]:
        return {name: self.parts[name] for name in names if name in self.parts}


_FIRST, _LAST = ("embed", "pos_embed"), ("bias", "hooks", "constant")
_LABELS = {"attn_out": "{}_attn_out", "heads": "L{}H{}", "mlp_out": "{}_mlp_out", "neurons": "L{}N{}"}


@dataclasses.dataclass(frozen=True)
class _Split:
    """How what a module adds is taken apart.

    Attributes:
      whole, parts: name of what the module adds, and of its parts.
      source, denominator: points that the parts follow from.
      needs: the method of the architecture that takes it apart.
    """

    whole: str
    parts: str
    source: str
    denominator: str
    needs: str


_SPLITS: dict[str, _Split | None] = {
    "layer": None,
    "head": _Split(
        "attn_out",
        "heads",
        "blocks.*.attn.hook_z",
        "blocks.*.ln1_post.hook_scale",
        "head_outputs",
    ),
    "neuron": _Split(
        "mlp_out",
        "neurons",
        "blocks.*.mlp.hook_post",
        "blocks.*.ln2_post.hook_scale",
        "neuron_effects",
    ),
}


def accumulated_resid(
    lm: LanguageModel, prompts: Any, *, positions: Any = -1, hooks: Hooks | None = None
) -> jax.Array:
    """The residual stream entering each layer, and leaving the last: ``[n_layers + 1, b, (p,) d]``.

    Arguments as `decompose`.
    """
    final = _final(check_lm(lm).arch)
    out = run_at(
        lm, checked(lm.arch, lm.prompts(prompts)), ["blocks.*.hook_resid_pre", final], positions, hooks
    )
    return squeezed(jnp.concatenate([out.stack("hook_resid_pre"), out[final][None]]), positions, -2)


def decompose(
    lm: LanguageModel,
    prompts: Any,
    *,
    by: Literal["layer", "head"] = "layer",
    positions: Any = -1,
    hooks: Hooks | None = None,
) -> Decomposition:
    """The final residual stream as the sum of what every part of the model wrote to it.

    Args:
      prompts: as `LanguageModel.prompts` takes them.
      by: ``layer``, attention and MLP of each layer; ``head``, every head in place of attention.
      positions: one position, a list, or those of each prompt ``[b, p]``, of real tokens where prompts are
        padded; None for all places of the padded axis.
      hooks: of the run.

    Returns:
      `Decomposition` that sums to ``blocks.-1.hook_resid_post``, in at least float32. Parts are as hooks
      leave them; what hooks add to the stream itself, or after ``attn.hook_z`` to that of a head, is in
      the part ``hooks``, which is otherwise zero up to rounding.

    Raises:
      ArgumentError: a model that normalises its stream after each module (OPT 350m): the stream is no sum.
        An architecture that does not say what its heads add, or whose layers are not alike. Neurons: all of
        them would be depth times MLP width vectors; `direct_logit_attribution` has them.

    Example:
      >>> import jmi_models
      >>> from jmi.interp.decompose.decomposition import decompose
      >>> lm = jmi_models.load("atlas")
      >>> parts = decompose(lm, "The capital of France is", by="head")
      >>> parts.stack().shape[0] == len(parts.labels())
      True
    """
    if choice("by", by, tuple(_SPLITS)) == "neuron":
        raise ArgumentError('by="neuron": direct_logit_attribution has them; use "layer" or "head" here')
    check_splits(lm, by)
    points = points_of(lm.arch, by, hooks)
    out = run_at(lm, checked(lm.arch, lm.prompts(prompts)), points, positions, hooks)
    parts = _stream_parts(lm.arch, by, lm.params, out)
    return jax.tree.map(lambda x: squeezed(x, positions, -2), parts)


@compiled(static=(0, 1))
def _stream_parts(arch: Any, by: str, params: Params, out: Output) -> Decomposition:
    def pieces(p: Any, z: jax.Array, denominator: Any) -> tuple[jax.Array, jax.Array]:
        return arch.head_outputs(p, z, denominator), arch.attn_constant(p, denominator)

    return parts_of(arch, by, params, out, lambda x: x.astype(wide(x.dtype)), pieces)


def check_splits(lm: LanguageModel, by: str) -> None:
    """Raise ArgumentError for what cannot be taken apart."""
    arch = check_lm(lm).arch
    choice("by", by, tuple(_SPLITS))
    if "ln_final.hook_scale" not in table_of(arch):
        raise ArgumentError(
            "this model normalises its residual stream after each module: what a module writes is scaled "
            "by later ones, so the stream is no sum of parts"
        )
    if getattr(arch, "writes_stream", False):
        raise ArgumentError(
            "a module writes the residual stream of this model, which is then no sum of its parts; take the "
            "model without it"
        )
    split = _SPLITS[by]
    if split is not None:
        if split.source not in table_of(arch):
            raise ArgumentError(f"by={by!r}: this model has no {split.source} to take apart")
        require(arch, split.needs)
    for point in points_of(arch, by, None):
        site = table_of(arch)[point]
        if site.n_layers not in (None, arch.n_layers):
            raise ArgumentError(f"{point} is in some layers alone: parts are those of layers that are alike")


def points_of(arch: Architecture, by: str, hooks: Hooks | None) -> list[str]:
    """Points whose values the parts follow from."""
    split, table = _SPLITS[by], table_of(arch)
    wholes = [name for name in ("attn_out", "mlp_out") if split is None or split.whole != name]
    inner = () if split is None else (split.source, split.denominator)
    present = [point for point in ("hook_embed", "hook_pos_embed", *inner) if point in table]
    present += [f"blocks.*.hook_{name}" for name in wholes]
    return [*present, _final(arch)] if named(hooks) else present


def run_at(
    lm: LanguageModel, prompts: Prompts, points: Sequence[str], positions: Any, hooks: Hooks | None
) -> Output:
    """A compiled run that keeps ``positions`` of ``points``, whose values have axes ``[b, p, ...]``."""
    reduce = None if positions is None else Positions(index_of(positions, prompts))
    return lm.run(prompts, hooks, [Capture(p, reduce=reduce) for p in points])


def index_of(positions: Any, prompts: Prompts) -> Any:
    """Positions as ``[p]`` or ``[b, p]``."""
    if positions is None:
        return np.arange(prompts.shape[1], dtype=np.int32)
    index = as_array("positions", positions)
    return index if index.ndim else index[None]


def squeezed(x: jax.Array, positions: Any, axis: int) -> jax.Array:
    """``x`` without the axis of positions where a single one was asked for."""
    return x.squeeze(axis) if positions is not None and np.ndim(positions) == 0 else x


def parts_of(
    arch: Architecture,
    by: str,
    params: Params,
    out: Output,
    read: Callable[[jax.Array], jax.Array],
    pieces: Callable[..., tuple[jax.Array, jax.Array]],
) -> Decomposition:
    """The parts of a run over `points_of`.

    Args:
      read: what is wanted of vectors ``[..., b, p, d]`` in the stream.
      pieces: parameters of a layer, value of the split's source, denominator -> what is wanted of each
        piece ``[b, p, n, ...]``, and the vectors that are in none.
    """
    split, parts = _SPLITS[by], {}
    with precise():
        for name in ("embed", "pos_embed"):
            if f"hook_{name}" in out.captures:
                parts[name] = read(out[f"hook_{name}"])
        for name in ("attn_out", "mlp_out"):
            if f"blocks.*.hook_{name}" in out.captures:
                parts[name] = read(out.stack(f"hook_{name}"))
        if split is not None:
            denominator = out.captures.get(split.denominator)
            inner, rest = over_layers(arch, pieces, params["blocks"], out[split.source], denominator)
            parts[split.parts] = jnp.moveaxis(inner, 3, 1)
            parts["bias"] = read(jnp.broadcast_to(rest.sum(0), out["hook_embed"].shape))
        if _final(arch) in out.names():
            parts["hooks"] = read(out[_final(arch)]) - Decomposition(parts).total()
    return Decomposition(parts)


def _final(arch: Architecture) -> str:
    return f"blocks.{arch.n_layers - 1}.hook_resid_post"
