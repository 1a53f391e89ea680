"""Shapes and dtypes of every site of a model, without running it."""

from typing import Any

import jax
import jax.numpy as jnp

from jmi.engine.forward import forward
from jmi.model.sites import layer_name, spans, split, table_of


class SiteShapes(dict[str, jax.ShapeDtypeStruct]):
    """Every site of a model by name; shown as one line for each point."""

    def __repr__(self) -> str:
        layers: dict[str, list[int]] = {}
        shapes: dict[str, jax.ShapeDtypeStruct] = {}
        for name, shape in self.items():
            point, layer = split(name)
            layers.setdefault(point, []).extend([] if layer is None else [int(layer)])
            shapes[point] = shape
        width = max(map(len, shapes), default=0)
        return "\n".join(
            f"{point:{width}}  {shape.dtype.name:8}  {list(shape.shape)}"
            + (f"  layers {spans(layers[point])}" if layers[point] else "")
            for point, shape in shapes.items()
        )


def site_shapes(
    arch: Any, batch: int = 1, pos: int = 1, dtype: Any = jnp.float32
) -> dict[str, jax.ShapeDtypeStruct]:
    """Every site of ``arch`` with its shape and dtype, in execution order, without weights.

    Args:
      arch: an architecture that describes its parameters (``param_tree``).
    """
    is_leaf = lambda leaf: hasattr(leaf, "init")  # noqa: E731
    params = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, dtype), arch.param_tree(), is_leaf=is_leaf)
    return shapes_of(arch, params, batch, pos)


def shapes_of(arch: Any, params: Any, batch: int, pos: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The same, given the parameters or their shapes."""
    tokens = jax.ShapeDtypeStruct((batch, pos), jnp.int32)
    table = table_of(arch)
    out = jax.eval_shape(lambda p, t: forward(arch, p, t, capture=list(table)), params, tokens)
    inside = [site for site in table.values() if site.layers is not None]
    names = [point for point, site in table.items() if site.layers is None]
    first = list(table).index(inside[0].point)
    names[first:first] = [
        layer_name(site.point, i) for i in range(arch.n_layers) for site in inside if i in (site.layers or ())
    ]
    return {name: jax.eval_shape(lambda name=name: out[name]) for name in names}
