"""What edits leave alone, and what they may not bring, at scores and patterns of attention."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jmi.errors import InterventionError
from jmi.model.sites import PATTERN, SCORES, Site


def beside_mask(act: Callable[[jax.Array], jax.Array], value: jax.Array, site: Site) -> jax.Array:
    """``act(value)``, but where a score is -inf it stays so: no query sees what a mask hides from it.

    Masks are those of later positions, windows, padding, and earlier knockouts. ``act`` finds 0 in
    their place, so that neither factors nor sums over keys become NaN. At other points all is acted on.
    """
    if site.point != SCORES:
        return act(value)
    return jnp.where(value == -jnp.inf, -jnp.inf, act(seen(value, site)))


def seen(value: jax.Array, site: Site) -> jax.Array:
    """``value`` with 0 in place of masked scores."""
    return jnp.where(value == -jnp.inf, 0, value) if site.point == SCORES else value


def check_weights(hook: Any, site: Site) -> None:
    """Raise InterventionError where an edit of attention weights brings a number that is not finite.

    Its payloads are looked at, also within `PerLayer`; traced ones are not known.
    """
    if site.point != PATTERN or isinstance(hook, type) or not dataclasses.is_dataclass(hook):
        return
    for field in dataclasses.fields(hook):
        given = getattr(hook, field.name)
        if not field.metadata.get("payload"):
            check_weights(given, site)
        elif not isinstance(given, jax.core.Tracer) and not _finite(np.asarray(given)):
            raise InterventionError(f"{site.point}: {field.name}= is not finite: that is no attention weight")


def _finite(values: np.ndarray) -> bool:
    """Whether no entry is NaN or infinite; what is no real number at all is refused elsewhere."""
    return not jnp.issubdtype(values.dtype, jnp.floating) or bool(
        np.isfinite(values.astype(np.float64)).all()
    )
