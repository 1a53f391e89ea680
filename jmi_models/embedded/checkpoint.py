"""Training checkpoints: parameters and optimizer state in one safetensors file."""

import json
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file


def write_checkpoint(path: Path, state: Any, step: int, run: dict[str, Any]) -> None:
    """Save the leaves of `state`; the file replaces the last one only when it is complete.

    Args:
      path: checkpoint file.
      state: pytree of arrays.
      step: number of the next step.
      run: what the run was started with, to refuse resuming a different one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {str(i): np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(state))}
    temporary = path.with_suffix(".tmp")
    save_file(arrays, temporary, metadata={"step": str(step), "run": json.dumps(run)})
    os.replace(temporary, path)


def read_checkpoint(path: Path, like: Any, run: dict[str, Any]) -> tuple[Any, int]:
    """State in the structure of `like` and the next step.

    Raises:
      ValueError: if the checkpoint is of a run with other settings.
    """
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
        if json.loads(metadata["run"]) != run:
            raise ValueError(f"{path} belongs to a run with settings {metadata['run']}")
        leaves = [file.get_tensor(str(i)) for i in range(len(file.keys()))]
    return jax.tree.unflatten(jax.tree.structure(like), leaves), int(metadata["step"])
