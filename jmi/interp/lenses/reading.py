"""The core of every lens: streams of one run, mapped, unembedded in pieces and measured.

Axis letters: n streams, b batch, p positions, r rows (positions of all of the batch), c rows of one piece,
d model width, v vocabulary, k top tokens.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jmi import metrics
from jmi.captures.capture import Capture
from jmi.captures.reducers import Positions
from jmi.checks import shown, whole_array, whole_number
from jmi.engine.forward import precise
from jmi.engine.programs import compiled
from jmi.errors import ArgumentError, HookError
from jmi.hooks.resolve import Hooks, prepare
from jmi.interp.lenses.lens import Lens
from jmi.interp.lenses.unembedding import logits_of
from jmi.lm import LanguageModel, check_lm
from jmi.model import padding
from jmi.model.inputs import Prompts, check_ids, checked
from jmi.model.sites import part_of, table_of
from jmi.numerics import wide

FINAL = "final_post"
_LOGITS = 2**22
"""So many logits are held at once, 16 MiB of float32; or those of one row in all streams, if more."""


def read_streams(
    lm: LanguageModel,
    prompts: Any,
    streams: Mapping[str, str],
    translate: Any = None,
    *,
    kind: str,
    note: str,
    norm: str = "fresh",
    target: Any = None,
    top: Any = 10,
    positions: Any = None,
    hooks: Hooks | None = None,
) -> Lens:
    """`Lens` of ``streams`` of one run, label -> name of the point, and of the final stream after them.

    Args:
      translate: a pytree that maps streams ``[n, c, d]`` before they are read; None for none.
      norm: "fresh", or "final" for the denominator of the final stream's norm.
    """
    found = checked(lm.arch, lm.prompts(prompts))
    d_vocab = vocabulary(lm)
    top = whole_number("top", top, 1, d_vocab)
    after = [p for p in prepare(lm.arch, hooks, found.shape, found.mask) if part_of(lm.arch, p) == "unembed"]
    if after:
        raise HookError(f"{after[0]}: streams are read by the model without hooks; hook what comes before it")
    tokens = _tokens(found, positions)
    goal = _target(lm, target, tokens.shape, d_vocab)
    points = [*streams.values(), f"blocks.{lm.arch.n_layers - 1}.hook_resid_post"]
    reduce = None if positions is None else Positions(_index(positions))
    out = lm.run(found, hooks, [Capture(point, reduce=reduce) for point in points], logits_at=-1)
    values = [_rows(out[point]) for point in points]
    measured = _measure(lm, (top, norm), translate, values, None if goal is None else goal.reshape(-1))
    return _lens(lm, (*streams, FINAL), tokens, measured, kind=kind, note=note)


def vocabulary(lm: LanguageModel) -> int:
    """Size of the vocabulary; ArgumentError for a model whose streams no lens can read."""
    table = table_of(lm.arch)
    if "blocks.*.hook_resid_post" not in table or "hook_logits" not in table:
        raise ArgumentError(
            "a lens needs a residual stream (hook_resid_post) and logits; this model lacks one"
        )
    return table["hook_logits"].sizes[-1] or 0


def check_width(lm: LanguageModel, width: int) -> None:
    """Raise ArgumentError for what no lens of ``width`` can read."""
    vocabulary(check_lm(lm))
    own = table_of(lm.arch)["blocks.*.hook_resid_post"].sizes[-1]
    if own != width:
        raise ArgumentError(f"the lens is of a model of width {width}; this one has {own}")


def _rows(x: Any) -> np.ndarray:
    """``[b, p, d]`` as ``[r, d]`` on the host: what waits for its turn need not fill the device."""
    return np.asarray(x).reshape(-1, x.shape[-1])


def _index(positions: Any) -> np.ndarray:
    index = np.asarray(whole_array("positions", positions))
    return index if index.ndim else index[None]


def _tokens(prompts: Prompts, positions: Any) -> np.ndarray:
    """Ids ``[b, p]`` at the positions; -1 where there is no token."""
    ids, mask = np.asarray(prompts.tokens), prompts.mask
    mask = np.ones(ids.shape, bool) if mask is None else np.asarray(mask)
    if positions is None:
        return np.where(mask, ids, -1)
    index = _index(positions)
    if index.ndim > 2 or (index.ndim == 2 and len(index) != len(ids)) or not index.size:
        raise ArgumentError(f"positions={shown(positions)}: give one, a list, or [{len(ids)}, p]")
    return np.asarray(padding.take(jnp.asarray(ids), padding.places(index, mask), 1, fill=-1))


def _target(lm: LanguageModel, target: Any, shape: tuple[int, ...], d_vocab: int) -> np.ndarray | None:
    """Token ids ``[b, p]``; None for the model's own prediction."""
    if target is None:
        return None
    ids = np.asarray(whole_array("target", lm.token_id(target) if isinstance(target, str) else target))
    check_ids("target", ids, d_vocab)
    if ids.shape not in ((), shape[:1], shape):
        raise ArgumentError(
            f"target={shown(target)}: give one token, {list(shape[:1])} or {list(shape)} of them"
        )
    return np.broadcast_to(ids[:, None] if ids.ndim == 1 else ids, shape).astype(np.int32)


def _measure(
    lm: LanguageModel,
    how: tuple[int, str],
    translate: Any,
    streams: list[np.ndarray],
    target: np.ndarray | None,
) -> dict[str, np.ndarray]:
    """All measures ``[n, r, ...]`` of streams ``[r, d]``, the last of which is the final one."""
    size = whole_piece(len(streams) * vocabulary(lm), len(streams[0]))
    found = []
    for rows, count in pieces(len(streams[0]), size):
        given = np.stack([x[rows] for x in streams])
        goals = None if target is None else target[rows]
        got = _measured(lm.arch, how, lm.params, translate, given, goals)
        found.append({name: np.asarray(x)[..., :count, :] for name, x in got.items()})
    return {name: np.concatenate([one[name] for one in found], axis=-2) for name in found[0]}


def whole_piece(numbers: int, rows: int) -> int:
    """How many of ``rows`` are read at once, with so many ``numbers`` for each: a power of two."""
    most = max(1, _LOGITS // numbers)
    return 1 << min(most.bit_length() - 1, (rows - 1).bit_length())


def pieces(rows: int, size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Indices of each piece of ``size`` rows, the last filled up with its last row, and how many count."""
    for start in range(0, rows, size):
        yield np.minimum(np.arange(start, start + size), rows - 1), min(size, rows - start)


@compiled(static=(0, 1))
def _measured(
    arch: Any, how: tuple[int, str], params: Any, translate: Any, streams: jax.Array, target: Any
) -> dict[str, jax.Array]:
    """Measures of streams ``[n, c, d]``, each with a last axis of its own; ``how``: top and norm."""
    (n, c, _), (top, norm) = streams.shape, how
    with precise():
        if translate is not None:
            moved = translate(streams[:-1].astype(wide(streams.dtype))).astype(streams.dtype)
            streams = jnp.concatenate([moved, streams[-1:]])
        final = jnp.tile(streams[-1], (n, 1)) if norm == "final" else None
        logits = logits_of(arch, params, streams.reshape(n * c, -1), final)
    values, ids = jax.lax.top_k(logits, top)
    logits, last = logits.reshape(n, c, -1), logits[-c:]
    # Not a slice of ids: XLA would then sort the whole vocabulary to find them, for forty times the work.
    goal = jnp.argmax(last, -1).astype(ids.dtype) if target is None else target
    goals = jnp.broadcast_to(goal[None], (n, c))
    p = jax.nn.log_softmax(logits, axis=-1)
    found = {
        "values": values.reshape(n, c, top),
        "ids": ids.reshape(n, c, top),
        "rank": metrics.rank(logits, goals),
        "prob": metrics.prob(logits, goals),
        "entropy": -jnp.where(p == -jnp.inf, 0, jnp.exp(p) * p).sum(-1),
        "kl": metrics.kl_divergence(jnp.broadcast_to(last[None], logits.shape), logits),
        "target": goal,
    }
    return {name: x if name in ("values", "ids") else x[..., None] for name, x in found.items()}


def _lens(
    lm: LanguageModel,
    labels: tuple[str, ...],
    tokens: np.ndarray,
    measured: dict[str, np.ndarray],
    **said: Any,
) -> Lens:
    """The result, with what stands at no token marked."""
    found: dict[str, Any] = {}
    for name, x in measured.items():
        x = x if name in ("values", "ids") else x[..., 0]
        axes = (1,) if name in ("values", "ids") else ()
        front = x.shape[: x.ndim - 1 - len(axes)]
        x = x.reshape(*front, *tokens.shape, *x.shape[len(front) + 1 :])
        there = (tokens >= 0).reshape(*tokens.shape, *axes)
        found[name] = np.where(there, x, np.array(-1 if x.dtype.kind == "i" else np.nan, x.dtype))
    on_top = found["rank"] == 0
    first = np.where(on_top.any(0), on_top.argmax(0), -1)
    known = np.unique(np.concatenate([found[name].ravel() for name in ("ids", "target")] + [tokens.ravel()]))
    words = {int(i): lm.token_string(int(i)) for i in known if i >= 0}
    return Lens(labels=labels, tokens=tokens, first=first, words=words, **found, **said)
