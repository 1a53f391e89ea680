"""The Jacobian lens: a stream, moved by the mean derivative of a later stream by it, and read as the last is.

Source: Gurnee, Sofroniew, Lindsey et al. 2026, "Verbalizable representations form a global workspace", and
the estimator of its repository, anthropics/jacobian-lens.

Axis letters: n layers, c positions, o and i the width of the stream, going out and coming in.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jmi import tree
from jmi.checks import real_array, several, shown, whole_number
from jmi.errors import ArgumentError
from jmi.hooks.resolve import Hooks
from jmi.interp.lenses.lens import Lens
from jmi.interp.lenses.reading import check_width, read_streams
from jmi.lm import LanguageModel

_NOTE = (
    "it says what the stream makes the model say at this and all later positions, on average over the texts "
    "it was fitted to; late matrices are near the identity, early ones of few texts are noise: fit two "
    "halves and compare them (JacobianLens.agreement)"
)


@dataclasses.dataclass(frozen=True, eq=False)
class JacobianLens:
    """Mean derivatives of the stream leaving ``target_layer`` by earlier streams.

    Attributes:
      matrices: float ``[n, o, i]``; what a stream ``h`` becomes is ``matrices[l] @ h``.
      layers: of which they are, in rising order: ``l`` is the stream *leaving* layer ``l``, and -1 the one
        that enters the first.
      target_layer: whose output is differentiated.
      n_prompts: how many texts they are the mean of.
    """

    matrices: np.ndarray
    layers: tuple[int, ...]
    target_layer: int
    n_prompts: int

    def __post_init__(self) -> None:
        shape, layers = np.shape(real_array("matrices", self.matrices, 3)), _whole(self.layers)
        least = whole_number("target_layer", self.target_layer, 0)
        whole_number("n_prompts", self.n_prompts, 1)
        if len(shape) != 3 or shape[1] != shape[2] or len(layers) != shape[0] or not layers:
            raise ArgumentError(f"matrices {list(shape)} of {len(layers)} layers: give [layers, d, d]")
        if list(layers) != sorted(set(layers)) or layers[-1] >= least:
            raise ArgumentError(f"layers={shown(layers)}: give rising ones from -1 to {least - 1}")
        object.__setattr__(self, "layers", layers)

    def __repr__(self) -> str:
        first, last, width = self.layers[0], self.layers[-1], self.matrices.shape[-1]
        return (
            f"JacobianLens({len(self.layers)} layers from {first} to {last}, of layer {self.target_layer}, "
            f"width {width}, {self.n_prompts} prompts)"
        )

    def merge(self, *others: "JacobianLens") -> "JacobianLens":
        """The lens of the texts of all together: means weighted by `n_prompts`.

        Raises:
          ArgumentError: lenses of other layers, another target or another width.
        """
        lenses = [self, *(_alike(self, other) for other in others)]
        counts = np.array([lens.n_prompts for lens in lenses])
        summed = sum(lens.matrices.astype(np.float64) * lens.n_prompts for lens in lenses)
        mean = (summed / counts.sum()).astype(self.matrices.dtype)
        return dataclasses.replace(self, matrices=mean, n_prompts=int(counts.sum()))

    def agreement(self, other: "JacobianLens") -> np.ndarray:
        """Cosine ``[n]`` between the matrices of two lenses, without the identity that all share.

        Of two halves of the texts it says what is more than chance: near 1 where more texts would change
        little, near 0 where the matrices are noise. A stream whose matrix is the identity has NaN.

        Raises:
          ArgumentError: as `merge`.
        """
        _alike(self, other)
        one, two = (x.matrices.astype(np.float64) - np.eye(x.matrices.shape[-1]) for x in (self, other))
        sizes = np.linalg.norm(one, axis=(1, 2)) * np.linalg.norm(two, axis=(1, 2))
        return np.where(sizes > 0, (one * two).sum((1, 2)) / np.where(sizes > 0, sizes, 1), np.nan)


def _whole(layers: Any) -> tuple[int, ...]:
    return tuple(whole_number("layers", i, -1) for i in several("layers", layers, "layers"))


def _alike(lens: JacobianLens, other: Any) -> JacobianLens:
    if not isinstance(other, JacobianLens):
        raise ArgumentError(f"{shown(other)}: give a JacobianLens")
    for name in ("layers", "target_layer"):
        if getattr(lens, name) != getattr(other, name):
            raise ArgumentError(
                f"lenses of {name} {getattr(lens, name)} and {getattr(other, name)}: give alike ones"
            )
    if lens.matrices.shape != other.matrices.shape:
        raise ArgumentError("lenses of different width: they are of different models")
    return other


@tree.dataclass
class Moved:
    """Streams ``[n, c, i]`` times the ``matrices`` ``[n, o, i]`` of their layers."""

    matrices: Any

    def __call__(self, streams: jax.Array) -> jax.Array:
        return jnp.einsum("noi,nci->nco", self.matrices.astype(streams.dtype), streams)


def jacobian_lens(
    lm: LanguageModel,
    prompts: Any,
    lens: JacobianLens,
    *,
    layers: Any = None,
    target: Any = None,
    top: int = 10,
    positions: Any = None,
    hooks: Hooks | None = None,
) -> Lens:
    """What streams of a run dispose the model to say, now or later: `JacobianLens` applied to one run.

    Args:
      prompts, target, top, positions, hooks: as `logit_lens`.
      lens: from `fit_jacobian_lens`, or a file (`jmi_models.load_lens`).
      layers: some of ``lens.layers``; by default all.

    Returns:
      `Lens` with the streams ``{layer}_post`` (``0_pre`` of layer -1), then the model's own ``final_post``.
      Each is ``unembed(final norm(J h))``, the norm computed fresh.

    Raises:
      ArgumentError: a lens of another width or depth; as `logit_lens`.

    With identities for matrices it is the logit lens: what it says beyond that one is due to the fit.

    Example:
      >>> import jmi, jmi_models
      >>> lm = jmi_models.load("atlas")
      >>> text = "The capital of France is Paris. The capital of Japan is Tokyo."
      >>> fitted = jmi.interp.fit_jacobian_lens(lm, text, skip_first=4)
      >>> jmi.interp.jacobian_lens(lm, "The capital of France is", fitted, positions=-1).labels
      ('0_post', '1_post', '2_post', '3_post', '4_post', 'final_post')
    """
    if not isinstance(lens, JacobianLens):
        raise ArgumentError(f"lens={shown(lens)}: give a JacobianLens, of fit_jacobian_lens or load_lens")
    check_width(lm, lens.matrices.shape[-1])
    if lens.target_layer >= lm.arch.n_layers:
        raise ArgumentError(f"the lens is of layer {lens.target_layer}; this model has {lm.arch.n_layers}")
    chosen = lens.layers if layers is None else _whole(layers)
    if not chosen or not set(chosen) <= set(lens.layers) or len(set(chosen)) < len(chosen):
        raise ArgumentError(f"layers={shown(layers)}: give different ones of {list(lens.layers)}")
    matrices = lens.matrices[[lens.layers.index(i) for i in chosen]]
    return read_streams(
        lm,
        prompts,
        dict(map(stream_leaving, chosen)),
        Moved(matrices),
        kind=f"Jacobian lens, {lens.n_prompts} prompts",
        note=_NOTE,
        target=target,
        top=top,
        positions=positions,
        hooks=hooks,
    )


def stream_leaving(layer: int) -> tuple[str, str]:
    """Label and point of the stream that leaves a layer; of -1 the one that enters the first."""
    if layer == -1:
        return "0_pre", "blocks.0.hook_resid_pre"
    return f"{layer}_post", f"blocks.{layer}.hook_resid_post"
