"""Parameters put together in numpy: sliced and stacked on a device, each shape would be a program."""

from typing import Any

import jax
import numpy as np

import jmi_models


def stacked(*trees: Any) -> Any:
    """Trees of one structure, stacked on a new axis in front."""
    return jax.device_put(jax.tree.map(lambda *x: np.stack(x), *trees))


def listed(params: Any) -> Any:
    """The same parameters, those of the layers as a list."""
    return jax.device_put(jmi_models.listed(jax.tree.map(np.asarray, params)))


def scaled(params: Any, factor: float) -> Any:
    """Other parameters: these times ``factor``."""
    return jax.device_put(jax.tree.map(lambda x: factor * np.asarray(x), params))
