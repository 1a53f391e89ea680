"""What a model must offer to be run, and what more it may offer: one page.

An architecture knows its mathematics and the names of its points. It knows nothing of hooks, jit, sweeps or
files: the engine drives it and hands it a `Tap`. What it may offer are protocols of their own below; whatever
is missing there is one clear error where it is asked for.
"""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any, Protocol

import jax

from jmi.errors import ArgumentError
from jmi.model.inputs import Prompts
from jmi.model.sites import Site
from jmi.model.tap import Tap

Params = Any
"""A pytree of arrays, a dict. ``params["blocks"]`` has the layers on a leading axis, or is a list of one
pytree for each; both give the same results. Where layers are of several `kinds`, it is a dict with one stack
for each run of like layers, ``{"0:3": ..., "3:24": ...}``, or again a list."""


class Architecture(Protocol):
    """A frozen, hashable value (its configuration) with pure methods: what every model must offer.

    ``context`` is what every layer reads besides its own weights: positions, masks, rotary tables; None
    where there is nothing of the kind. ``carry`` is what flows from layer to layer, a pytree of arrays
    ``[b, s, ...]``: the residual stream, and whatever else an architecture hands on. ``layer`` is the index
    of the layer, possibly traced; of several kinds of layers a block sees by its parameters which it is.

    It may also have the attributes ``d_vocab`` and ``n_ctx``: prompts are then checked to be tokens of that
    vocabulary, and no more of them than that. ``n_places`` is the length of its table of positions, where
    it has one: positions that are given are then checked to be in it. ``takes_padding = True`` in its class
    says that padding, wherever the mask has it, is nothing to the real tokens: prompts then run at few
    lengths.
    """

    @property
    def n_layers(self) -> int: ...

    def __hash__(self) -> int: ...

    def sites(self) -> Mapping[str, Site]:
        """Every point of the model, in execution order."""
        ...

    def context(self, params: Params, prompts: Prompts) -> Any: ...

    def embed(self, params: Params, prompts: Prompts, context: Any, tap: Tap) -> Any: ...

    def block(self, layer_params: Params, carry: Any, context: Any, layer: Any, tap: Tap) -> Any: ...

    def unembed(self, params: Params, carry: Any, tap: Tap) -> jax.Array:
        """Logits ``[b, s, vocab]``."""
        ...


@dataclasses.dataclass(frozen=True)
class Cache:
    """A point whose values at earlier positions are what later ones read of them: keys, values.

    The architecture passes it with ``tap.recall``, which gives the values of all positions.
    """

    point: str


@dataclasses.dataclass(frozen=True)
class State:
    """What a recurrence hands from one position to the next: it enters a layer at one point and leaves at
    another.

    The architecture passes the first with ``tap.recall``, and gives what there is before any token.
    """

    enters: str
    leaves: str


class Remembering(Protocol):
    """An architecture that can go on from what earlier positions left behind."""

    def memory(self) -> Mapping[str, Cache | State]:
        """All that later positions read of earlier ones, by name."""
        ...

    def within(self, context: Any, first: Any, length: int) -> Any:
        """``context`` of ``length`` positions from ``first`` (data) on, given that of all of them."""
        ...

    def check_continued(self, length: int) -> None:
        """Raise ArgumentError where what is kept of the first positions differs in a text of ``length``."""
        ...


class Narrowing(Protocol):
    """An architecture whose block can return one position of each row, having read all."""

    def only(self, context: Any, at: jax.Array) -> Any:
        """``context`` of a block that returns position ``at`` ``[1 or b]`` of each row alone."""
        ...


class Mixed(Protocol):
    """An architecture with several kinds of layers; like ones that follow each other run as one scan."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kind of each layer; all parameters of layers of one kind have the same structure and shapes."""
        ...


class Described(Protocol):
    """An architecture that describes its parameters: they can be made, loaded, saved, placed and checked."""

    def param_tree(self) -> dict[str, Any]:
        """One description (with ``shape``) for each parameter, in the structure of the real ones."""
        ...


class Checking(Protocol):
    """An architecture that checks its inputs itself, for it reads something else than tokens."""

    def check(self, prompts: Prompts) -> None:
        """Raise ArgumentError for prompts that cannot be run; arrays may be traced."""
        ...


def remembers(arch: Any) -> bool:
    """Whether an architecture is `Remembering`; also one that hands a question on to the model it holds."""
    return all(hasattr(arch, name) for name in ("memory", "within", "check_continued"))


def runs_of(arch: Any) -> list[range]:
    """The runs of like layers of an architecture."""
    kinds = getattr(arch, "kinds", ("",) * arch.n_layers)
    ends = [0, *itertools.accumulate(len(list(run)) for _, run in itertools.groupby(kinds))]
    return [range(start, stop) for start, stop in itertools.pairwise(ends)]


def stack_name(layers: range) -> str:
    """Key of the parameters of a run of like layers, where a model has several."""
    return f"{layers.start}:{layers.stop}"


class Attributable(Protocol):
    """An architecture that says what it writes to its stream, and how logits read it, given the norms of a
    run.

    ``direction`` is enough for whole layers; heads and neurons need the other methods. Axis letters: b batch,
    p positions, d model width, h heads, k head width, m MLP width. ``layer_params`` are those of one layer;
    ``denominator`` is the ``hook_scale`` ``[b, p, 1]`` of the norm after the module (``ln1_post``,
    ``ln2_post``), None where there is none.
    """

    def direction(self, params: Params, tokens: Any, others: Any = None) -> tuple[jax.Array, jax.Array]:
        """Vector ``[..., d]`` and constant ``[...]``: stream @ vector / ln_final.hook_scale + constant."""
        ...

    def head_outputs(self, layer_params: Any, z: jax.Array, denominator: Any) -> jax.Array:
        """What each head adds to the stream, ``[b, p, h, d]`` from ``attn.hook_z`` ``[b, p, h, k]``."""
        ...

    def head_effects(self, layer_params: Any, z: jax.Array, vector: jax.Array, denominator: Any) -> jax.Array:
        """The same times ``vector`` ``[b, p, d]``: ``[b, p, h]``."""
        ...

    def attn_constant(self, layer_params: Any, denominator: Any) -> jax.Array:
        """What attention adds besides its heads, broadcastable to ``[b, p, d]``."""
        ...

    def neuron_effects(
        self, layer_params: Any, post: jax.Array, vector: jax.Array, denominator: Any
    ) -> jax.Array:
        """What each neuron adds times ``vector``: ``[b, p, m]`` from ``mlp.hook_post`` ``[b, p, m]``."""
        ...

    def mlp_constant(self, layer_params: Any, denominator: Any) -> jax.Array:
        """What the MLP adds besides its neurons, broadcastable to ``[b, p, d]``."""
        ...


class Attending(Protocol):
    """An architecture whose layers all have attention heads, and that says with which weights they read and
    write: their circuits follow from these.
    """

    def attention_weights(self, layer_params: Any) -> Mapping[str, jax.Array]:
        """By name ``W_Q`` ``[d, h, k]``, ``W_K`` and ``W_V`` ``[d, g, k]``, ``W_O`` ``[h, k, d]``.

        Axis letters: d model width, h heads, k head width, g key/value heads; h is a multiple of g.
        """
        ...


class Streaming(Protocol):
    """An architecture whose layers hand on more than the residual stream, and that reads its logits from that
    alone.
    """

    def carry_of(self, stream: jax.Array) -> Any:
        """What ``unembed`` takes in place of what leaves the last layer, of a stream ``[b, s, d]``."""
        ...


def carry_of(arch: Any, stream: jax.Array) -> Any:
    """What the ``unembed`` of an architecture takes, of a stream: itself, unless it is `Streaming`."""
    return arch.carry_of(stream) if hasattr(arch, "carry_of") else stream


def require(arch: Any, method: str) -> Any:
    """``arch``, found to have a method of `Attributable` or `Attending`; else ArgumentError."""
    if not hasattr(arch, method):
        name = getattr(arch, "family", type(arch).__name__)
        raise ArgumentError(f"{name}: this needs an architecture with {method}(), see {__name__}")
    return arch
