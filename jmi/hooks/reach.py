"""How far an intervention reaches: what it says of itself, so that runs may share what it leaves alone, and
prompts be padded.

An intervention may have two methods, each ``(site) -> bool``; without one the answer is no.

- ``is_local``: what it gives at a position is made of that position alone, at sites of attention of that
  query's row alone.
- ``is_causal``: what it gives at a position depends on the present and the past alone. At sites of attention
  this asks that no query is let look at a later key.

An intervention, a reducer or a metric may have ``takes_padding = True`` in its class: what it does to the
tokens of a prompt is then the same however much padding stands beside them. Where arrays of a hook or reducer
have an entry for each place of the prompt, that is noticed.
"""

from typing import Any, Literal

import jax
import numpy as np

from jmi.model.sites import SCORES, Site


def says(hook: Any, question: Literal["is_local", "is_causal"], site: Site) -> bool:
    """The answer of ``hook`` at ``site``; no for a class that acts anew but inherits its answer."""
    return _answers(type(hook), question) and bool(getattr(hook, question)(site))


def takes_padding(what: Any) -> bool:
    """Whether a hook, reducer, metric or module says so; no for a class that acts anew but inherits it."""
    return _answers(type(what), "takes_padding") and bool(what.takes_padding)


def _answers(kind: type, question: str) -> bool:
    """Whether a class, as it acts, has an answer."""
    if not hasattr(kind, question):
        return False
    answers, acts = (
        next((i for i, each in enumerate(kind.__mro__) if name in vars(each)), len(kind.__mro__))
        for name in (question, "__call__")
    )
    return answers <= acts


def looks_ahead(payload: Any, site: Site) -> bool:
    """Whether ``payload``, put at a site of attention, lets a query look at a later key.

    Args:
      payload: broadcast against ``[..., query, key]``; a traced one may be anything.
    """
    if "key" not in site.axes:
        return False
    if isinstance(payload, jax.core.Tracer):
        return True
    values = np.asarray(payload)
    looks = values != (-np.inf if site.point == SCORES else 0)
    if looks.ndim < 2 or 1 in looks.shape[-2:]:
        return bool(looks.any())
    return bool(np.triu(looks, 1).any())
