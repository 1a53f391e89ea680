"""Fitting a Jacobian lens: one linearisation of each batch of texts, and one cotangent for each output.

Axis letters: b batch, s places, m outputs pulled back together, d width of the stream.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jmi import tree
from jmi.checks import flag, several, whole_number
from jmi.errors import ArgumentError
from jmi.interp.lenses.jacobian import JacobianLens, stream_leaving
from jmi.interp.lenses.reading import pieces, vocabulary
from jmi.lm import LanguageModel, check_lm
from jmi.model import padding
from jmi.model.inputs import Prompts, checked
from jmi.model.sites import table_of
from jmi.numerics import wide
from jmi.vjp import vjp_at


@tree.dataclass
class MeanOver:
    """Gradients ``{name: [b, s, d]}``, summed over places with ``weights`` ``[b, s]``: ``{name: [d]}``."""

    weights: Any

    def __call__(self, grads: dict[str, jax.Array]) -> dict[str, jax.Array]:
        def one(x: jax.Array) -> jax.Array:
            x = x.astype(wide(x.dtype))
            return jnp.einsum("bs,bsd->d", self.weights.astype(x.dtype), x)

        return {name: one(x) for name, x in grads.items()}


def fit_jacobian_lens(
    lm: LanguageModel,
    prompts: Any,
    *,
    skip_first: int = 16,
    target_layer: int | None = None,
    layers: Any = None,
    batch: int = 4,
    chunk: int = 16,
    progress: bool = True,
) -> JacobianLens:
    """The mean derivative of a late stream by earlier ones, over the positions of many texts.

    ``J_l`` is the mean over texts of the mean over valid positions p of the sum over valid positions p' of
    ``d stream_target[p'] / d stream_l[p]``: the future counts, not only the position itself. Valid are all
    but the first ``skip_first`` and the last; texts count alike, whatever their length.

    Args:
      prompts: as `LanguageModel.prompts` takes them. Published lenses have 100 to 1,000 texts of up to 128
        tokens.
      skip_first: so many first positions are left out: they are unlike all others.
      target_layer: whose output is differentiated; by default the last.
      layers: sources, below the target: ``l`` is the stream leaving layer ``l``, -1 the one that enters the
        first; by default from 0 on, as published ones have.
      batch: texts that are run together.
      chunk: outputs that are pulled back together.
      progress: show a bar, if standard error is a terminal.

    Returns:
      `JacobianLens` in float32 (float64 of such a model).

    Raises:
      ArgumentError: a text of fewer than ``skip_first + 2`` tokens, which has no valid position; layers that
        are none.

    The cost is that of ``d_model`` backward passes for each text. To go on later or elsewhere, fit parts
    and `JacobianLens.merge` them; two parts also tell how far the fit can be trusted.

    Example:
      >>> import jmi, jmi_models
      >>> lm = jmi_models.load("atlas")
      >>> text = "The capital of France is Paris. The capital of Japan is Tokyo."
      >>> jmi.interp.fit_jacobian_lens(lm, text, skip_first=4)
      JacobianLens(5 layers from 0 to 4, of layer 5, width 128, 1 prompts)
    """
    vocabulary(check_lm(lm))
    target = whole_number(
        "target_layer",
        lm.arch.n_layers - 1 if target_layer is None else target_layer,
        0,
        lm.arch.n_layers - 1,
    )
    sources = _sources(layers, target)
    batch, chunk = whole_number("batch", batch), whole_number("chunk", chunk)
    found = checked(lm.arch, lm.prompts(prompts))
    weights = _weights(found, whole_number("skip_first", skip_first, 0))
    rows, size = found.shape[0], min(batch, found.shape[0])
    total: Any = 0
    bar = tqdm(list(pieces(rows, size)), unit="batch", disable=None if flag("progress", progress) else True)
    for index, count in bar:
        part = jax.tree.map(lambda x, index=index: np.asarray(x)[index], found)
        share = weights[index] * (np.arange(size) < count)[:, None]
        total = total + _summed(lm, part, sources, target, share, chunk)
    dtype = wide(lm.dtype)
    return JacobianLens((total / rows).astype(dtype), sources, target, rows)


def _sources(layers: Any, target: int) -> tuple[int, ...]:
    given = range(target) if layers is None else several("layers", layers, "layers")
    found = sorted({whole_number("layers", i, -1, target - 1) for i in given})
    if not found:
        raise ArgumentError("no source below the target: use a later target_layer, or layers=[-1]")
    return tuple(found)


def _weights(prompts: Prompts, skip: int) -> np.ndarray:
    """One over the number of valid positions at the valid ones, float ``[b, s]``."""
    shape = prompts.shape
    mask = np.ones(shape, bool) if prompts.mask is None else np.asarray(prompts.mask)
    number = np.asarray(padding.numbers(mask))
    valid = mask & (number >= skip) & (number < mask.sum(-1, keepdims=True) - 1)
    short = np.flatnonzero(~valid.any(-1))
    if short.size:
        raise ArgumentError(
            f"prompt {short[0]} has {mask[short[0]].sum()} tokens; with skip_first={skip} give {skip + 2} or "
            f"more ({short.size} of {shape[0]} prompts are too short)"
        )
    return valid / valid.sum(-1, keepdims=True)


def _summed(
    lm: LanguageModel,
    prompts: Prompts,
    sources: tuple[int, ...],
    target: int,
    weights: np.ndarray,
    chunk: int,
) -> np.ndarray:
    """Sum over texts of their mean derivatives, float64 ``[sources, d, d]``."""
    end, points = f"blocks.{target}.hook_resid_post", [stream_leaving(i)[1] for i in sources]
    width = table_of(lm.arch)["blocks.*.hook_resid_post"].sizes[-1] or 0
    _, pull = vjp_at(lm, prompts, end, points, chunk=chunk, reduce=MeanOver(weights.astype(wide(lm.dtype))))
    valid, found = (weights > 0).astype(np.float32), []
    for outputs, count in pieces(width, min(chunk, width)):
        one_hot = (outputs[:, None] == np.arange(width)).astype(np.float32)
        cotangents = one_hot[:, None, None, :] * valid[None, :, :, None]
        pulled = pull({end: cotangents})
        found.append(np.stack([np.asarray(pulled[p], np.float64)[:count] for p in points]))
    return np.concatenate(found, axis=1)
