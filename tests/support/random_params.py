"""Random parameters made in numpy: `jmi_models.init` compiles a program for each shape."""

from typing import Any

import jax
import numpy as np

from jmi_models.params import Param


def random_params(arch: Any, seed: int, noise: float, dtype: Any = "float32") -> Any:
    """Parameters as they are initialised, with normal noise of size ``noise`` on top, so that each counts."""
    rng = np.random.default_rng(seed)

    def drawn(param: Param) -> np.ndarray:
        start = {"ones": 1.0, "zeros": 0.0}.get(str(param.init))
        value = param.init * rng.normal(size=param.shape) if start is None else start
        return np.asarray(value + noise * rng.normal(size=param.shape), dtype)

    # Unlike jnp.asarray, which compiles a program for each shape.
    return jax.device_put(
        jax.tree.map(drawn, arch.param_tree(), is_leaf=lambda node: isinstance(node, Param))
    )
