"""Modules that put a dictionary into a model (`jmi.rewire`), with its features as sites."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jmi import tree
from jmi.engine.wired import Here
from jmi.model.inputs import Prompts
from jmi.model.sites import Site
from jmi.numerics import wide
from jmi_sparse.dictionaries.dictionary import Dictionary
from jmi_sparse.dictionaries.pursuit import MatchingPursuit

SAE_POINTS = ("input", "acts_pre", "acts_post", "recons", "error", "output")
"""Points of an autoencoder, ``hook_sae_*``, in the order in which it passes them: SAELens's names."""


def special_places(ids: jax.Array, prompts: Prompts) -> jax.Array:
    """Where special tokens stand, bool ``[b, s]``."""
    return (jnp.asarray(prompts.tokens)[..., None] == ids[None, None]).any(-1)


def apart(special: jax.Array | None, new: jax.Array, old: jax.Array) -> jax.Array:
    """``new``, and ``old`` at special tokens."""
    if special is None:
        return new
    return jnp.where(special.reshape(*special.shape, *[1] * (new.ndim - 2)), old, new)


@tree.dataclass
class SplicedSAE:
    """An autoencoder at the point that it reads and writes.

    Attributes:
      params: the autoencoder; of several layers, with a row for each.
      special: ids of tokens at which the point stays as it is, int32 ``[n]``; None for none.
      features: how many there are.
      error: whether what it misses is added. Static, as the rest.
    """

    params: Dictionary | MatchingPursuit
    special: Any
    features: int = tree.static()
    error: bool = tree.static()
    per_layer: bool = tree.static(default=True)
    takes_padding = True

    @property
    def carries(self) -> bool:
        """Whether it needs to know where special tokens stand."""
        return self.special is not None

    def sites(self, reads: tuple[Site, ...], writes: Site) -> Mapping[str, Mapping[str, int | None]]:
        """Its points, named after the one where it stands."""
        own = dict(zip(writes.axes, writes.sizes, strict=True))
        features = {"batch": None, "pos": None, "feature": self.features}
        left_out = {"acts_pre"} if isinstance(self.params, MatchingPursuit) else set()
        left_out |= set() if self.error else {"error"}
        return {
            _named(writes, part): features if part.startswith("acts") else own
            for part in SAE_POINTS
            if part not in left_out
        }

    def start(self, carry: Any, prompts: Prompts) -> jax.Array:
        """Where special tokens stand."""
        return special_places(self.special, prompts)

    def __call__(self, read: jax.Array, written: jax.Array, carry: Any, here: Here) -> Any:
        """The output in place of what was read."""
        sae, name = self.params, lambda part: _named(here.site, part)

        def output_of(features: jax.Array) -> jax.Array:
            y = sae.decode(features, x)
            if isinstance(sae, Dictionary) and sae.W_skip is not None:
                y = y + sae.skipped(x)
            return y.astype(written.dtype)

        x = here.tap(name("input"), written)
        if isinstance(sae, MatchingPursuit):
            clean = sae.encode(x)
        else:
            clean = sae.encode_through(x, lambda pre: here.tap(name("acts_pre"), pre))
        features = here.tap(name("acts_post"), clean)
        y = output_of(features)
        output = here.tap(name("recons"), y)
        if self.error:
            if here.tap.hooked(name("input")) or here.tap.hooked(name("acts_pre")):
                y = sae.reconstruct(written).astype(written.dtype)
            elif here.tap.hooked(name("acts_post")):
                y = output_of(clean)
            output = with_error(output, y, written, lambda e: here.tap(name("error"), e))
        return apart(carry, here.tap(name("output"), output), written), carry


def _named(site: Site, part: str) -> str:
    return f"{site.point.removeprefix('blocks.*.')}.hook_sae_{part}"


@tree.dataclass
class SplicedTranscoder:
    """A transcoder in place of what it stands for.

    Attributes:
      params, special, features, error, per_layer: as of `SplicedSAE`.
      closed: points of the layer that nothing reads any more.
    """

    params: Dictionary
    special: Any
    features: int = tree.static()
    error: bool = tree.static()
    per_layer: bool = tree.static(default=True)
    closed: tuple[str, ...] = tree.static(default=())
    takes_padding = True

    @property
    def carries(self) -> bool:
        """Whether it needs to know where special tokens stand."""
        return self.special is not None

    def sites(self, reads: tuple[Site, ...], writes: Site) -> Mapping[str, Mapping[str, int | None]]:
        """Its features, before and after the activation, and what it misses."""
        return transcoder_sites(writes, self.features, self.error)

    def closes(self, writes: str) -> Iterable[str]:
        """What lies between its input and its output, where it stands for all of that."""
        return self.closed

    def start(self, carry: Any, prompts: Prompts) -> jax.Array:
        """Where special tokens stand."""
        return special_places(self.special, prompts)

    def __call__(self, read: jax.Array, written: jax.Array, carry: Any, here: Here) -> Any:
        """Its output in place of what was written."""
        part, name = self.params, place_of(here.site)
        clean = part.encode_through(read, lambda pre: here.tap(f"{name}.hook_features_pre", pre))
        features = here.tap(f"{name}.hook_features", clean)
        output = (part.decode(features, read) + part.skipped(read)).astype(written.dtype)
        if self.error:
            hooked = [here.tap.hooked(f"{name}.hook_features{end}") for end in ("_pre", "")]
            y = part.reconstruct(read).astype(written.dtype) if any(hooked) else output
            output = with_error(output, y, written, lambda e: here.tap(f"{name}.hook_error", e))
        return apart(carry, output, written), carry


def with_error(
    output: jax.Array, clean: jax.Array, written: jax.Array, tap: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    """``output`` and what ``clean`` misses of ``written``, all in its dtype, added in float32 or more."""
    wider = wide(written.dtype)
    missed = tap((written.astype(wider) - clean.astype(wider)).astype(written.dtype))
    return (output.astype(wider) + missed.astype(wider)).astype(written.dtype)


def place_of(site: Site) -> str:
    """What begins the names of a transcoder's points: ``mlp``, where it writes the output of an MLP."""
    name = site.point.removeprefix("blocks.*.")
    return {"mlp.hook_out": "mlp", "hook_mlp_out": "mlp"}.get(name, name)


def transcoder_sites(writes: Site, features: int, error: bool) -> dict[str, Mapping[str, int | None]]:
    """Points of a transcoder, name -> axes."""
    name, axes = place_of(writes), {"batch": None, "pos": None, "feature": features}
    own = dict(zip(writes.axes, writes.sizes, strict=True))
    found: dict[str, Mapping[str, int | None]] = {
        f"{name}.hook_features_pre": axes,
        f"{name}.hook_features": axes,
    }
    return found | ({f"{name}.hook_error": own} if error else {})
