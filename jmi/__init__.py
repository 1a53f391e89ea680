"""jmi: mechanistic interpretability for language models in JAX.

A model is a pure function over a parameter pytree, a hook is an entry in a dict of pure functions,
and what you capture comes back as a pytree: every experiment jits, vmaps, differentiates and shards.
"""

from jmi import lazy

__version__ = "0.1.0"

lazy.attach(__name__)
