"""Tiny RWKV models with what the `rwkv` package makes of them (`tests.oracles.rwkv_package`)."""

import functools
from pathlib import Path

import numpy as np

DATA = Path(__file__).parents[1] / "data"


@functools.cache
def recorded(version: int) -> dict[str, np.ndarray]:
    with np.load(DATA / f"rwkv{version}.npz", allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def weights(version: int) -> dict[str, np.ndarray]:
    return {k.removeprefix("weights/"): v for k, v in recorded(version).items() if k.startswith("weights/")}
