"""The logit lens: every stream of a model read as its last one is.

Source: nostalgebraist 2020, "interpreting GPT: the logit lens"; TransformerLens for the labels.
"""

from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jmi.checks import as_array, choice, real_array, several, shown, whole_number
from jmi.engine.forward import precise
from jmi.engine.programs import compiled
from jmi.errors import ArgumentError
from jmi.hooks.resolve import Hooks
from jmi.interp.lenses.lens import Lens
from jmi.interp.lenses.reading import pieces, read_streams, vocabulary, whole_piece
from jmi.interp.lenses.unembedding import SCALE, logits_of
from jmi.lm import LanguageModel, check_lm
from jmi.model.sites import table_of

_NOTE = (
    "early streams are in another basis than the last: their top tokens look meaningful and are often wrong; "
    "with tied embeddings the first stream reads back the input token"
)
_POINTS = {"pre": "hook_resid_pre", "mid": "hook_resid_mid", "post": "hook_resid_post"}


def logit_lens(
    lm: LanguageModel,
    prompts: Any,
    *,
    norm: Literal["fresh", "final"] = "fresh",
    streams: Sequence[str] | None = None,
    target: Any = None,
    top: int = 10,
    positions: Any = None,
    hooks: Hooks | None = None,
) -> Lens:
    """What every residual stream of a run says, read by the model's own final norm and unembedding.

    One run; logits are made piece by piece, and none are kept but the top ones.

    Args:
      prompts: as `LanguageModel.prompts` takes them.
      norm: two things are called the logit lens. ``fresh`` normalises each stream by itself, as most lenses
        do. ``final`` divides each by what the final stream of that position is divided by: linear, so that
        what parts of the stream say sums to what it says (before any soft-cap); TransformerLens's
        ``apply_ln``.
      streams: labels ``{layer}_pre``, ``{layer}_mid`` (between attention and MLP) and ``{layer}_post``; by
        default ``pre`` and, where there is one, ``mid`` of every layer. ``final_post`` always comes last.
      target: a word that is one token, a token id, one for each prompt ``[b]``, or ``[b, p]``; by default
        the token that the model itself puts on top at each position.
      top: so many of the top tokens are kept.
      positions: one position, a list, or those of each prompt ``[b, p]``; None for all, which for many long
        prompts keeps their whole streams at once: then choose some, such as -1.
      hooks: of the run; none after the layers.

    Returns:
      `Lens`, in at least float32. Its last stream is what the model says.

    Raises:
      ArgumentError: a model without a residual stream, or for ``norm="final"`` without a final norm; labels,
        tokens or positions that are none.
      HookError: a hook after the layers.

    A parallel block has no ``mid``. An early stream that says a token does not mean that the model knows it
    there: compare with `tuned_lens`, and with other prompts.

    Example:
      >>> import jmi, jmi_models
      >>> lm = jmi_models.load("atlas")
      >>> lens = jmi.interp.logit_lens(lm, "The capital of France is", target="Paris", positions=-1)
      >>> lens.labels[lens.first[0, 0]], lens.rank[:, 0, 0].tolist()[-5:]
      ('5_mid', [50, 5, 3, 0, 0])
    """
    vocabulary(check_lm(lm))
    if choice("norm", norm, ("fresh", "final")) == "final" and SCALE not in table_of(lm.arch):
        raise ArgumentError('norm="final": this model has no final norm; use norm="fresh"')
    return read_streams(
        lm,
        prompts,
        _chosen(lm, streams),
        kind=f"logit lens, norm {norm}",
        note=_NOTE,
        norm=norm,
        target=target,
        top=top,
        positions=positions,
        hooks=hooks,
    )


def _chosen(lm: LanguageModel, streams: Sequence[str] | None) -> dict[str, str]:
    """Label -> name of the point, of the streams that were asked for."""
    table, has = table_of(lm.arch), {}
    for layer in range(lm.arch.n_layers):
        for kind, point in _POINTS.items():
            site = table.get(f"blocks.*.{point}")
            if site is not None and layer in (site.layers or ()):
                has[f"{layer}_{kind}"] = f"blocks.{layer}.{point}"
    if streams is None:
        return {label: point for label, point in has.items() if not label.endswith("post")}
    given = several("streams", streams, "labels")
    unknown = [label for label in given if not isinstance(label, str) or label not in has]
    if unknown or len(set(given)) != len(given):
        raise ArgumentError(
            f"streams={shown(streams)}: give different labels from {next(iter(has))} to {list(has)[-1]}"
        )
    return {label: has[label] for label in given}


def lens_of(lm: LanguageModel, vectors: Any, *, top: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """The tokens that vectors of the stream say, and their logits: ids and values ``[..., top]``.

    Each is read by itself as if it were the final stream: a steering vector, a direction of a dictionary, a
    row of a weight. Its length does not count (beside the norm's epsilon), and the biases of norm and
    unembedding are in the logits of all alike. For what a direction lowers, give ``-vectors``.

    Args:
      vectors: real numbers ``[..., d_model]``.
      top: so many of the top tokens.

    Raises:
      ArgumentError: vectors of another width; a model that no lens can read.

    Example:
      >>> import jmi, jmi_models
      >>> lm = jmi_models.load("atlas")
      >>> ids, values = jmi.interp.lens_of(lm, lm.params["embed"]["W_E"][lm.token_id("Paris")], top=1)
      >>> lm.token_string(ids[0])
      ' Paris'
    """
    d_vocab = vocabulary(check_lm(lm))
    top = whole_number("top", top, 1, d_vocab)
    given = np.asarray(real_array("vectors", as_array("vectors", vectors), 1))
    width = table_of(lm.arch)["blocks.*.hook_resid_post"].sizes[-1]
    if given.shape[-1] != width or not given.size:
        raise ArgumentError(f"vectors={shown(vectors)}: give [..., {width}], vectors of the stream")
    flat, found = given.reshape(-1, given.shape[-1]).astype(lm.dtype), []
    for rows, count in pieces(len(flat), whole_piece(d_vocab, len(flat))):
        found.append([np.asarray(x)[:count] for x in _top(lm.arch, top, lm.params, jnp.asarray(flat[rows]))])
    values, ids = (
        np.concatenate(parts).reshape(*given.shape[:-1], top) for parts in zip(*found, strict=True)
    )
    return ids, values


@compiled(static=(0, 1))
def _top(arch: Any, top: int, params: Any, vectors: jax.Array) -> tuple[jax.Array, jax.Array]:
    with precise():
        values, ids = jax.lax.top_k(logits_of(arch, params, vectors), top)
    return values, ids
