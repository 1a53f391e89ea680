"""What tests of loading share: equal parameters, and the message of a load that must fail."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import jmi_models
from jmi.errors import CheckpointError


def assert_same(got: Any, want: Any) -> None:
    """The same tree of arrays, bit by bit."""
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(got), jax.device_get(want))


def fails(folder: Path, **kwargs: Any) -> str:
    """Message of the CheckpointError that loading ``folder`` raises."""
    with pytest.raises(CheckpointError) as caught:
        jmi_models.load(folder, **kwargs)
    return str(caught.value)
