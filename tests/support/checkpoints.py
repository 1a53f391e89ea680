"""What tests of loading share: shapes, equal parameters, the message of a failure, what is compiled."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax import monitoring

import jmi_models
from jmi.errors import CheckpointError
from jmi_models.disk.layout import disk_shape
from jmi_models.families import FAMILIES
from jmi_models.weights.checkpoint import plan_reads
from tests.oracles import grid


@functools.cache
def shapes_of(name: str) -> dict[str, tuple[int, ...]]:
    """Every tensor of a checkpoint of a config of the grid, by name."""
    config = grid.GRID[name]
    family = FAMILIES[config["model_type"]]
    arch = family.from_config(config)
    reads = plan_reads(arch, family, {})
    return {stored: disk_shape(targets[0].key, arch.sizes()) for stored, targets in reads.items()}


def assert_same(got: Any, want: Any) -> None:
    """The same tree of arrays, bit by bit."""
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(got), jax.device_get(want))


def fails(folder: Path, **kwargs: Any) -> str:
    """Message of the CheckpointError that loading ``folder`` raises."""
    with pytest.raises(CheckpointError) as caught:
        jmi_models.load(folder, **kwargs)
    return str(caught.value)


def compiled(function: Callable[[], Any]) -> list[str]:
    """Every time that JAX traces, lowers or compiles a program during ``function()``."""
    seen: list[str] = []

    def listen(event: str, duration: float, **_: Any) -> None:
        if event.startswith("/jax/core/compile/"):
            seen.append(event)

    monitoring.register_event_duration_secs_listener(listen)
    try:
        function()
    finally:
        monitoring.unregister_event_duration_listener(listen)
    return seen
