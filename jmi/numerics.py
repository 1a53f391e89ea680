"""The precision in which delicate sums are done."""

from typing import Any

import jax.numpy as jnp
import numpy as np


def wide(dtype: Any) -> np.dtype:
    """At least float32: the dtype of norms, softmax, angles and metrics of values in ``dtype``."""
    dtype = jnp.dtype(dtype)
    return dtype if dtype.itemsize >= 4 else jnp.dtype(jnp.float32)
