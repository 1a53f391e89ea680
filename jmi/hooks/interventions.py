"""Interventions: what a hook does to the tensor at a site.

An intervention is any pytree callable ``(value, site) -> value`` of the same shape and dtype. Its
arrays are data, so a new vector, strength, position, head or layer never recompiles; its type and
structure are static. Those below broadcast a payload numpy-style against the site's last axes and
compute in the site's dtype. Of attention scores `Replace` and `Patch` write what they are given; the others
leave a masked one, which is -inf, as it is. Edits of attention weights are in `jmi.hooks.attention`,
projections in `jmi.hooks.projection`, noise in `jmi.hooks.noise`.
"""

import dataclasses
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jmi import tree
from jmi.checks import as_array, real_array, shown
from jmi.errors import InterventionError
from jmi.hooks.masked import beside_mask
from jmi.hooks.reach import looks_ahead
from jmi.hooks.selection import Selective, check_selectors
from jmi.model import padding
from jmi.model.sites import SCORES, Site


class Intervention(Protocol):
    """Contract of everything in a hooks dict.

    ``value`` is the tensor at the site and ``site`` says which site and layer it is. The result
    flows onward in its place and must have the same shape and dtype. The function must be pure:
    it is traced once per structure and may run under jit, vmap, grad and shard_map. Make a class
    of your own with `jmi.tree.dataclass`; its optional method ``check(site, shape)`` is called
    before anything is traced, and ``is_local(site)`` and ``is_causal(site)`` (`jmi.hooks.reach`) let a
    sweep start its cells later. A class that says yes to both and is `Selective` acts nowhere but at
    ``positions``. With ``takes_padding = True`` in the class prompts of a new length compile nothing.
    """

    def __call__(self, value: jax.Array, site: Site) -> jax.Array: ...


def fit(payload: Any, value: jax.Array, site: Site) -> jax.Array:
    """``payload`` broadcast and cast to ``value``; InterventionError when it does not fit."""
    payload = jnp.asarray(payload)
    if not (jnp.issubdtype(payload.dtype, jnp.floating) or jnp.issubdtype(payload.dtype, jnp.integer)):
        raise InterventionError(f"{site.point}: the payload has dtype {payload.dtype}; give real numbers")
    try:
        fits = jnp.broadcast_shapes(payload.shape, value.shape) == value.shape
    except ValueError:
        fits = False
    if not fits:
        raise InterventionError(
            f"{site.point}: a payload of shape {payload.shape} does not fit {describe(value, site)}; "
            f"the nearest valid shape is {_nearest(payload.shape, value.shape)}"
        )
    return jnp.broadcast_to(payload.astype(value.dtype), value.shape)


def describe(value: jax.Array, site: Site) -> str:
    """``[batch 1, pos 6, d_model 64]``."""
    return "[" + ", ".join(f"{a} {n}" for a, n in zip(site.axes, value.shape, strict=True)) + "]"


def _nearest(given: tuple[int, ...], wanted: tuple[int, ...]) -> tuple[int, ...]:
    return wanted[max(0, len(wanted) - max(1, len(given))) :]


def payload(**kwargs: Any) -> Any:
    """Field of real numbers: a Python int there is data of the same kind as a float."""
    return dataclasses.field(metadata={"payload": True}, **kwargs)


@tree.dataclass
class Replace(Selective):
    """Put ``value`` there (broadcast against the site), where selected.

    Example:
      >>> import jax.numpy as jnp, jmi
      >>> mean = jnp.zeros(64)
      >>> hooks = {"blocks.3.hook_mlp_out": jmi.Replace(mean, positions=-1)}
    """

    takes_padding: ClassVar[bool] = True
    value: Any = payload()

    def is_local(self, site: Site) -> bool:
        """Each position by itself."""
        return True

    def is_causal(self, site: Site) -> bool:
        """Not where ``value`` gives attention to later keys."""
        return not looks_ahead(self.value, site)

    def __call__(self, value: jax.Array, site: Site) -> jax.Array:
        return self.select(fit(self.value, value, site), value, site)


@tree.dataclass
class Add(Selective):
    """Add ``scale * vector``, where selected: activation steering."""

    takes_padding: ClassVar[bool] = True
    vector: Any = payload()
    scale: Any = payload(default=1.0)

    def is_local(self, site: Site) -> bool:
        """Each position by itself."""
        return True

    def is_causal(self, site: Site) -> bool:
        """Not where ``vector`` gives attention to later keys; a masked score stays masked."""
        return site.point == SCORES or not looks_ahead(self.vector, site)

    def __call__(self, value: jax.Array, site: Site) -> jax.Array:
        shift = fit(self.vector, value, site) * fit(self.scale, value, site)
        return self.select(beside_mask(lambda v: v + shift, value, site), value, site)


@tree.dataclass
class Scale(Selective):
    """Multiply by ``factor``, where selected."""

    takes_padding: ClassVar[bool] = True
    factor: Any = payload()

    def is_local(self, site: Site) -> bool:
        """Each position by itself."""
        return True

    def is_causal(self, site: Site) -> bool:
        """No attention times anything is none."""
        return True

    def __call__(self, value: jax.Array, site: Site) -> jax.Array:
        factor = fit(self.factor, value, site)
        return self.select(beside_mask(lambda v: v * factor, value, site), value, site)


@tree.dataclass
class Zero(Selective):
    """Set to exactly zero, where selected (even where the value is infinite).

    Attributes:
      masked: of attention scores, True also zeroes masked ones, which opens the mask: queries then see later
        keys, and what is outside of their window. Static.
    """

    takes_padding: ClassVar[bool] = True
    masked: bool = tree.static(default=False, kw_only=True)

    def check(self, site: Site, shape: tuple[int, ...]) -> None:
        """Raise InterventionError for selectors that do not fit, and for a mask where there is none."""
        super().check(site, shape)
        if self.masked and site.point != SCORES:
            raise InterventionError(f"{site.point}: masked= has no meaning here; only {SCORES} has a mask")

    def is_local(self, site: Site) -> bool:
        """Each position by itself."""
        return True

    def is_causal(self, site: Site) -> bool:
        """Not where masked scores become zero, too."""
        return not self.masked

    def __call__(self, value: jax.Array, site: Site) -> jax.Array:
        new = jnp.zeros_like(value) if self.masked else beside_mask(jnp.zeros_like, value, site)
        return self.select(new, value, site)


@tree.dataclass
class Patch(Selective):
    """Copy activations of another run: ``source`` at the selected coordinates.

    Attributes:
      source: the tensor of the same site in the other run, shape as here or with one batch row;
        its length may differ when ``source_positions`` is given.
      source_positions: where in ``source`` to read, one index per entry of ``positions``, for
        prompts that line up at different places. Without it, the same places are read: of padded
        batches both must have their padding in the same places. A traced index out of range reads NaN.
      source_mask: of the other run, if that was padded: ``source_positions`` then name its real tokens.

    Raises:
      InterventionError: ``source`` has another shape, a source position is out of range, or the two
        position lists do not pair up.
    """

    takes_padding: ClassVar[bool] = True
    source: Any
    source_positions: Any = None
    source_mask: Any = None

    def check(self, site: Site, shape: tuple[int, ...]) -> None:
        """Raise InterventionError for selectors or a source that do not fit this run."""
        super().check(site, shape)
        source = real_array(f"{site.point}: source", self.source).shape
        axis = site.axis("pos", "query")
        wanted = list(shape)
        if self.source_mask is not None and self.source_positions is None:
            raise InterventionError(
                f"{site.point}: source_mask= says which tokens source_positions= name; give these, too"
            )
        if self.source_positions is not None:
            self._check_pairs(site, axis)
            if len(source) == len(shape) and axis is not None:
                self._check_mask(site, (source[0], source[axis]))
                other = dataclasses.replace(site, mask=self.source_mask)
                check_selectors({"positions": self.source_positions}, other, source)
                wanted[axis] = source[axis]
        if source not in (tuple(wanted), (1, *wanted[1:])):
            raise InterventionError(
                f"{site.point}: Patch needs the whole tensor of the other run, shape {tuple(wanted)} or with "
                f"one batch row; got {source}. To write one vector use Replace"
            )

    def _check_mask(self, site: Site, shape: tuple[int, int]) -> None:
        if self.source_mask is not None and jnp.shape(self.source_mask) != shape:
            raise InterventionError(
                f"{site.point}: source_mask= has shape {jnp.shape(self.source_mask)}; the source has {shape}"
            )

    def _check_pairs(self, site: Site, axis: int | None) -> None:
        read, write = (as_array(name, getattr(self, name)) for name in ("source_positions", "positions"))
        integers = all(jnp.issubdtype(x.dtype, jnp.integer) for x in (read, write))
        if axis is None or not integers or (read.shape or (1,)) != (write.shape or (1,)) or write.ndim > 1:
            raise InterventionError(
                f"{site.point}: source_positions= pairs with positions= one to one, both indices; "
                f"got {shown(self.source_positions)} and {shown(self.positions)}"
            )

    def is_local(self, site: Site) -> bool:
        """Each position by itself."""
        return True

    def is_causal(self, site: Site) -> bool:
        """Not where ``source`` gives attention to later keys, or rows of it move."""
        return "key" not in site.axes or (
            self.source_positions is None and not looks_ahead(self.source, site)
        )

    def __call__(self, value: jax.Array, site: Site) -> jax.Array:
        source = jnp.asarray(self.source)
        if self.source_positions is not None:
            source = self._aligned(source, value, site)
        return self.select(fit(source, value, site), value, site)

    def _aligned(self, source: jax.Array, value: jax.Array, site: Site) -> jax.Array:
        axis = site.axis("pos", "query")
        read, write = jnp.atleast_1d(self.source_positions), jnp.atleast_1d(self.positions)
        if axis is not None and (site.mask is not None or self.source_mask is not None):
            return self._by_row(source, read, write, value, axis=axis, mask=site.mask)
        before = (slice(None),) * (axis or 0)
        rows = source.at[(*before, read)].get(mode="fill", fill_value=jnp.nan).astype(value.dtype)
        return value.at[(*before, write)].set(rows)

    def _by_row(
        self, source: jax.Array, read: Any, write: Any, value: jax.Array, *, axis: int, mask: Any
    ) -> jax.Array:
        """``source`` with the tokens ``read`` of each row where the tokens ``write`` of ``value`` stand."""
        shape, size = (value.shape[0], value.shape[axis]), source.shape[axis]
        whole = lambda given, *shape: np.ones(shape, bool) if given is None else given  # noqa: E731
        read = padding.places(read, whole(self.source_mask, source.shape[0], size))
        write = padding.places(write, whole(mask, *shape))
        row = jnp.arange(shape[0], dtype=write.dtype)[:, None]
        at = jnp.full(shape, size, jnp.int32).at[row, write].set(jnp.broadcast_to(read, write.shape))
        return padding.take(source, at, axis).astype(value.dtype)


_NOT_KNOWN = (
    jax.errors.ConcretizationTypeError,
    jax.errors.NonConcreteBooleanIndexError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)


def apply(hook: Intervention, value: jax.Array, site: Site) -> jax.Array:
    """``hook(value, site)``, with its result held to the shape and dtype of ``value``."""
    try:
        out = hook(value, site)
    except _NOT_KNOWN as error:
        raise InterventionError(
            f"{site.point}: the intervention asks for a number that is not known before the run, as in "
            "`if site.layer == 3`. To act in layer 3 only use jmi.At([3], hook), for values use jnp.where"
        ) from error
    check_returned("the intervention", out, value, site)
    return out


def check_returned(who: str, out: Any, value: jax.Array, site: Site) -> None:
    """Raise InterventionError where ``out`` is no array of the shape and dtype of ``value``."""
    if getattr(out, "shape", None) != value.shape or out.dtype != value.dtype:
        got = f"{out.dtype}{list(out.shape)}" if hasattr(out, "shape") else shown(out)
        raise InterventionError(
            f"{site.point}: {who} returned {got}; it must return "
            f"{value.dtype}{list(value.shape)} like the value it was given"
        )
