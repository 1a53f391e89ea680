"""Path patching: what a head or MLP does to others directly, not through what lies between them.

Wang et al. 2022 (arXiv:2211.00593), Goldowsky-Dill et al. 2023 (arXiv:2304.05969). The effect of a
sender on receivers R is measured in these runs:

1. Both prompts are run: the base, which is changed, and the source. Outputs of heads (``hook_z``) and MLPs
   (``hook_mlp_out``) are kept.
2. The base is run with every head and every MLP frozen, set to what it gave in the base; but the sender
   gives what it gave in the source. What arrives at R is kept. It differs from the base only by
   what the sender itself adds to the residual stream. *Through MLPs*, these are not frozen but
   recomputed in this run, so that paths from the sender over MLPs to R count, too; heads stay frozen.
3. The base is run with nothing frozen, and R reads what arrived in 2. The metrics are those of this run.
   When R is the logits, run 2 is the last one; its final norm is recomputed.

Axis letters: b batch, s sequence, d model width, h heads, l layers, r receiving layers.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jmi import tree
from jmi.captures.output import Output
from jmi.checks import choice, flag, several, shown
from jmi.errors import ArgumentError
from jmi.hooks.grid import Grid
from jmi.hooks.interventions import Patch
from jmi.hooks.layers import At, PerLayer
from jmi.interp.into import Into, turned
from jmi.interp.patching.measure import (
    Measured,
    Metrics,
    checked_metric,
    checked_options,
    measured,
    prompts_of,
    swept,
    with_room,
)
from jmi.interp.patching.patch_result import PatchResult
from jmi.interp.patching.places import lined_up, placed, places_of
from jmi.interp.patching.replacements import replacement
from jmi.lm import LanguageModel, check_lm
from jmi.model.inputs import Prompts
from jmi.model.sites import Site, find, slots, table_of
from jmi.sweeps.store import folders_in
from jmi.sweeps.sweep import sweep

MLPS = "blocks.*.hook_mlp_out"
_HEADS = ("blocks.*.attn.hook_z", "blocks.*.rwkv.hook_z")
_ARRIVES = {"q": "hook_resid_pre", "k": "hook_resid_pre", "v": "hook_resid_pre", "mlp": "hook_mlp_in"}
_READS = {"q": "hook_q_input", "k": "hook_k_input", "v": "hook_v_input", "mlp": "hook_mlp_in"}


class Receiver(NamedTuple):
    """What reads the sender: the query, key or value input of a head, or an MLP.

    Attributes:
      input: which of them.
      layer: of the head or MLP.
      head: for "q" a query head, for "k" and "v" a key/value head; None for an MLP.

    Example:
      >>> Receiver("q", 4, 0)
      Receiver(input='q', layer=4, head=0)
    """

    input: Literal["q", "k", "v", "mlp"]
    layer: int
    head: int | None = None


def path_patch(
    lm: LanguageModel,
    clean: Any,
    corrupted: Any,
    *,
    metric: Metrics,
    into: Into = "corrupted",
    senders: Literal["heads", "mlps"] = "heads",
    receivers: Sequence[Receiver] | None = None,
    through_mlps: bool = False,
    positions: Any = None,
    logits_at: Any = -1,
    **options: Any,
) -> PatchResult:
    """Effect of every head (or MLP) on ``receivers`` alone, as defined above.

    Args:
      clean, corrupted: prompts of one shape, as `LanguageModel.prompts` takes them.
      metric: one, or a dict of several (`jmi.metrics`).
      into: the run that is changed, the base; senders give what they gave in the other, the source.
      senders: what is swept, one by one.
      receivers: they read what arrives all together; None for the logits.
      through_mlps: recompute MLPs between sender and receivers.
      positions: where the sender is patched, one or several together, of real tokens; None for all.
      logits_at: the position that metrics read, one or ``[b]``.
      options: ``memory``, ``mesh``, ``output``, ``progress`` and ``exact`` of `jmi.sweep`. With
        ``receivers`` there are several sweeps, of runs 2 and 3 and of each layer of heads: ``output`` then
        holds a folder for each of them. Those of run 2 keep the streams that arrived at the receivers.

    Returns:
      `PatchResult` with the axes layer (and head) of the sender.

    Raises:
      ArgumentError: prompts of different shapes, or receivers that do not exist.
      HookError: the model lacks the inputs of the receivers.
      OutputError: a folder of something else, or one that cannot be used.

    Example:
      >>> import jmi_models
      >>> from jmi.interp.patching.path_patching import path_patch
      >>> from jmi.metrics import LogitDiff
      >>> lm = jmi_models.load("atlas")
      >>> diff = LogitDiff(lm.token_id("Paris"), lm.token_id("Rome"))
      >>> direct = path_patch(lm, "The capital of France is", "The capital of Italy is", metric=diff)
      >>> direct.recovery.shape == (lm.arch.n_layers, lm.arch.n_heads, 1)
      True
    """
    both = (prompts_of(check_lm(lm), clean), prompts_of(lm, corrupted))
    if both[0].shape != both[1].shape:
        raise ArgumentError(f"clean is {both[0].shape} and corrupted {both[1].shape}: use one shape")
    options = checked_options(options)
    output = options.pop("output", None)
    prompts, others = turned(both, choice("into", into, ("clean", "corrupted")))
    choice("senders", senders, ("heads", "mlps"))
    metric, through_mlps = checked_metric(metric), flag("through_mlps", through_mlps)
    _check_receivers(lm, receivers)
    table = table_of(lm.arch)
    heads = next((point for point in _HEADS if point in table), None)
    if heads is None:
        raise ArgumentError(f"path_patch needs heads: this model has neither {' nor '.join(_HEADS)}")
    sender = table[heads if senders == "heads" else MLPS]

    cells = lm.arch.n_layers * ((sender.sizes[2] or 1) if senders == "heads" else 1)
    prompts, others = (
        with_room(lm, each, None, cells=cells, logits_at=logits_at, exact=options["exact"])
        for each in (prompts, others)
    )
    before = lm.run(prompts, capture=[heads, MLPS], logits_at=logits_at)
    after = lm.run(others, capture=[sender.point], logits_at=logits_at)
    base, source = measured(metric, before), measured(metric, after)
    frozen = {p: PerLayer(Patch(before[p])) for p in ([heads] if through_mlps else [heads, MLPS])}

    put = replacement("source", after[sender.point], sender, others.mask)
    put = placed(put, sender, lined_up(sender, prompts, others, prompts.shape[1]), 1)
    over = ("layer", "head") if senders == "heads" else ("layer",)
    layers = sender.layers or ()
    # One layer of heads at a time: what arrives at the receivers is kept for each sender.
    groups: list[Sequence[int]] = [[i] for i in layers] if senders == "heads" and receivers else [layers]
    folders = _folders(output, groups) if receivers else [(output, output)]

    def sent(layers: Sequence[int], folders: tuple[Any, Any]) -> Measured:
        chosen = {"layer": layers, "position": positions}
        places = places_of(lm.arch, sender, prompts, over, chosen)
        hooks = places.hooks(Patch(put, **places.selectors))
        run = {"base": frozen, "logits_at": logits_at, **options}
        if receivers is None:
            return swept(lm, prompts, hooks, metric, output=folders[0], **run)
        arrived = _arriving(lm, prompts, hooks, receivers, output=folders[0], **run)
        reading = _reading(lm, receivers, places.grid, arrived)
        return swept(lm, prompts, reading, metric, logits_at, output=folders[1], **options)

    parts = [sent(*each) for each in zip(groups, folders, strict=True)]
    axes = {"layer": np.asarray(layers), "head": np.arange(sender.sizes[2] or 0)}
    patched = jax.tree.map(lambda *x: np.concatenate(x), *parts)
    return PatchResult({axis: axes[axis] for axis in over}, patched, base, source, into)


def _check_receivers(lm: LanguageModel, receivers: Sequence[Receiver] | None) -> None:
    for given in () if receivers is None else several("receivers", receivers, "Receiver"):
        if not isinstance(given, Receiver):
            raise ArgumentError(f"receivers= holds {shown(given)}; give Receiver('q', layer, head)")
        if given.input not in _READS:
            raise ArgumentError(f"{given}: its input is one of {', '.join(_READS)}")
        ((site, _),) = find(lm.arch, f"blocks.{given.layer}.{_READS[given.input]}")
        axis = site.axis("head", "kv_head")
        exist = [None] if axis is None else range(site.sizes[axis] or 0)
        if given.head not in exist:
            raise ArgumentError(f"{given}: {'an MLP has no head' if axis is None else f'heads are {exist}'}")
    if receivers is not None and not len(receivers):
        raise ArgumentError("receivers=[] is empty; None stands for the logits")


def _folders(output: Any, groups: Sequence[Sequence[int]]) -> list[tuple[Any, Any]]:
    """Where the two sweeps of each group of sending layers are kept: of what arrives, and of what is read."""
    if output is None:
        return [(None, None) for _ in groups]
    names = [(f"arriving_{group[0]}-{group[-1]}", f"reading_{group[0]}-{group[-1]}") for group in groups]
    folders = folders_in(output, [name for pair in names for name in pair])
    return [(folders[arriving], folders[reading]) for arriving, reading in names]


def _arriving(
    lm: LanguageModel, prompts: Prompts, hooks: Any, receivers: Sequence[Receiver], **options: Any
) -> dict[str, np.ndarray]:
    """Streams that arrive at the receivers in run 2: point -> ``[*cells, r, b, s, d]``."""
    names = {f"blocks.{r.layer}.{_ARRIVES[r.input]}" for r in receivers}
    found: dict[str, np.ndarray] = sweep(lm, prompts, hooks, _captures, capture=sorted(names), **options)
    return found


def _captures(out: Output) -> dict[str, jax.Array]:
    return dict(out.captures)


def _reading(
    lm: LanguageModel, receivers: Sequence[Receiver], grid: Grid, arrived: dict[str, np.ndarray]
) -> dict[str, Any]:
    """Hooks of run 3."""
    n = lm.arch.n_layers
    hooks: dict[str, Any] = {}
    for kind in dict.fromkeys(receiver.input for receiver in receivers):
        mine = [r for r in receivers if r.input == kind]
        layers = {r.layer % n for r in receivers if _ARRIVES[r.input] == _ARRIVES[kind]}
        point = f"blocks.*.{_READS[kind]}"
        reads = np.zeros((n, 1 if kind == "mlp" else table_of(lm.arch)[point].sizes[2] or 0), bool)
        for receiver in mine:
            reads[receiver.layer, receiver.head or 0] = True
        read = _Read(grid.cells(arrived[f"blocks.*.{_ARRIVES[kind]}"]), slots(sorted(layers), n), reads)
        hooks[point] = At(reads.any(1), read)
    return hooks


@tree.dataclass
class _Read:
    """Replace what receivers read.

    Attributes:
      streams: ``[r, b, s, d]``, of the receiving layers.
      slots: int32 ``[l]``, the row of each of them, -1 of other layers.
      heads: bool ``[l, h]``, the receiving heads, or ``[l, 1]`` at an MLP.
    """

    streams: Any
    slots: Any
    heads: Any

    def __call__(self, value: jax.Array, site: Site) -> jax.Array:

        def of_layer(x: Any) -> jax.Array:
            return jax.lax.dynamic_index_in_dim(jnp.asarray(x), site.layer, keepdims=False)

        stream = jax.lax.dynamic_index_in_dim(self.streams, of_layer(self.slots), keepdims=False)
        if site.axis("head", "kv_head") is None:
            return stream
        return jnp.where(of_layer(self.heads)[None, None, :, None], stream[:, :, None], value)
