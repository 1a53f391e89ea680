"""How things are timed: CPU-seconds and wall seconds, interleaved so that ratios are fair."""

import dataclasses
import os
import platform
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import psutil

from jmi.artefacts import environment


@dataclasses.dataclass(frozen=True)
class Timing:
    """Fastest of several runs.

    Attributes:
      cpu: process CPU-seconds, all threads.
      wall: seconds.
    """

    cpu: float
    wall: float


def compare(cases: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, Timing]:
    """Time compiled ``cases`` in turn, ``repeats`` times round, and keep each one's best.

    Going round means that a disturbance of the machine hits every case alike.
    """
    for case in cases.values():
        jax.block_until_ready(case())
    best: dict[str, Timing] = {}
    for _ in range(repeats):
        for name, case in cases.items():
            cpu, wall = time.process_time(), time.perf_counter()
            jax.block_until_ready(case())
            took = Timing(time.process_time() - cpu, time.perf_counter() - wall)
            known = best.get(name, took)
            best[name] = Timing(min(known.cpu, took.cpu), min(known.wall, took.wall))
    return best


def throughput(
    case: str, tokens: int, runs: Mapping[str, Callable[[], Any]], repeats: int
) -> list[dict[str, Any]]:
    """A row for each of ``runs``: tokens per second, and CPU-seconds against those of the run named jmi."""
    times = compare(runs, repeats)
    own = times["jmi"]
    return [
        {
            "case": f"{case}: {name}",
            "tokens_per_s": tokens / took.wall,
            "cpu_s": took.cpu,
            "cpu_of_jmi": took.cpu / own.cpu,
        }
        for name, took in times.items()
    ]


def hardware() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        **environment(),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
    }


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as info:
            return next(line.split(":", 1)[1].strip() for line in info if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
