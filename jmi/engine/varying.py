"""Types inside shard_map: along which mesh axes a value differs between devices."""

from typing import Any

import jax


def vary_like(tree: Any, others: Any) -> Any:
    """Mark ``tree`` as device-varying along every manual mesh axis along which ``others`` vary.

    Inside shard_map the carry of a scan must have one type throughout, and hooks or tokens that
    differ per device make it vary from the first layer on.
    """
    axes = frozenset[str]().union(*map(_varying, jax.tree.leaves(others)))

    def vary(x: Any) -> Any:
        missing = tuple(sorted(axes - _varying(x)))
        return jax.lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(vary, tree) if axes else tree


def _varying(x: Any) -> frozenset[str]:
    """Manual mesh axes along which ``x`` differs between devices; none outside shard_map."""
    return jax.typeof(x).manual_axis_type.varying if isinstance(x, jax.core.Tracer) else frozenset()
