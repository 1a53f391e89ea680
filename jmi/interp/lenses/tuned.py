"""The tuned lens: a learnt affine map for each stream, whose output is read as the last stream is.

Source: Belrose et al. 2023, "Eliciting Latent Predictions from Transformers with the Tuned Lens"
(arXiv:2303.08112), and tuned-lens 0.2.0, whose maps are residual.

Axis letters: n layers, c positions, o and i the width of the stream, going out and coming in.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jmi import tree
from jmi.checks import real_array, shown
from jmi.errors import ArgumentError
from jmi.hooks.resolve import Hooks
from jmi.interp.lenses.lens import Lens
from jmi.interp.lenses.reading import check_width, read_streams
from jmi.lm import LanguageModel

_NOTE = (
    "the maps were trained to say what the model says in the end, so they may find what the model has not "
    "yet made use of; they hold for text like theirs: compare on other text, and with a shuffled model"
)


@dataclasses.dataclass(frozen=True, eq=False)
class TunedLens:
    """Maps ``h -> h + weight @ h + bias`` of the streams that enter layers 0, 1, ....

    Attributes:
      weights: float ``[n, o, i]``, all layers of the model.
      biases: float ``[n, o]``.
      losses: of the fit, ``[steps, n]`` in nats; None of a lens from a file.
    """

    weights: np.ndarray
    biases: np.ndarray
    losses: np.ndarray | None = None

    def __post_init__(self) -> None:
        shape = np.shape(real_array("weights", self.weights, 3))
        of_biases = np.shape(real_array("biases", self.biases))
        if len(shape) != 3 or shape[1] != shape[2] or of_biases != shape[:2] or 0 in shape:
            raise ArgumentError(f"weights {list(shape)}, biases {list(of_biases)}: give [n, d, d] and [n, d]")

    def __repr__(self) -> str:
        return f"TunedLens({self.weights.shape[0]} layers, width {self.weights.shape[1]})"


@tree.dataclass
class Translated:
    """Streams ``[n, c, i]`` and what the maps of their layers add to them."""

    weights: Any
    biases: Any

    def __call__(self, streams: jax.Array) -> jax.Array:
        weights, biases = (x.astype(streams.dtype) for x in (self.weights, self.biases))
        return streams + jnp.einsum("noi,nci->nco", weights, streams) + biases[:, None]


def tuned_lens(
    lm: LanguageModel,
    prompts: Any,
    lens: TunedLens,
    *,
    target: Any = None,
    top: int = 10,
    positions: Any = None,
    hooks: Hooks | None = None,
) -> Lens:
    """What each stream of a run says, as far as an affine map of it can tell: `TunedLens` applied to one run.

    Args:
      prompts, target, top, positions, hooks: as `logit_lens`. The maps stay as they were fitted, without
        hooks.
      lens: from `fit_tuned_lens`, or a folder of tuned-lens (`jmi_models.load_lens`).

    Returns:
      `Lens` with the streams ``{layer}_pre``, then the model's own ``final_post``, which has no map.

    Raises:
      ArgumentError: a lens of another width or depth; as `logit_lens`.

    Example:
      >>> import numpy as np, jmi, jmi_models
      >>> lm = jmi_models.load("atlas")
      >>> nothing = jmi.interp.TunedLens(np.zeros((6, 128, 128)), np.zeros((6, 128)))
      >>> jmi.interp.tuned_lens(lm, "The capital of France is", nothing)
      Lens(tuned lens: 7 streams, rows 1, positions 6, top 10)
    """
    if not isinstance(lens, TunedLens):
        raise ArgumentError(f"lens={shown(lens)}: give a TunedLens, of fit_tuned_lens or load_lens")
    depth, width = lens.biases.shape
    check_width(lm, width)
    if depth != lm.arch.n_layers:
        raise ArgumentError(f"the lens is of a model of {depth} layers; this one has {lm.arch.n_layers}")
    return read_streams(
        lm,
        prompts,
        {f"{i}_pre": f"blocks.{i}.hook_resid_pre" for i in range(depth)},
        Translated(lens.weights, lens.biases),
        kind="tuned lens",
        note=_NOTE,
        target=target,
        top=top,
        positions=positions,
        hooks=hooks,
    )
