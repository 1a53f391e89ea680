"""SmolLM2 and Gemma 3 from the GGUF files that packages bring, against transformers on the same files.

Each round is a fresh process of each, in turn. jmi has a folder of programs that is empty in its first
process of a round and kept for the second; transformers has nothing to compile.
"""

import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

from typer import BadParameter

from jmi_models.gguf import places

_STAGES = {
    "load": "load, with the tokenizer",
    "first logits": "from nothing to the first logits",
    "decode, first": "decode, per token, first call",
    "decode": "decode, per token",
    "patch, first": "patch of every head, per cell, first call",
    "patch": "patch of every head, per cell",
}
_WAYS = {"jmi, nothing compiled": "jmi", "jmi, programs on disk": "jmi", "transformers": "transformers"}

Runs = dict[str, list[dict[str, Any]]]
"""Way -> what each of its processes found."""


def real(rounds: int) -> list[dict[str, Any]]:
    """Medians over rounds, with the smallest and the largest; models that are not installed are left out.

    ``resident`` is what loading added to the memory of the process, mapped files included, by the bytes of
    the weights in float32.
    """
    if not places.installed():
        raise BadParameter(f"no model is installed: {'; '.join(places.HOW_TO_INSTALL.values())}")
    rows = []
    for model in places.installed():
        places.from_package(model)  # put together before anything is timed
        runs: Runs = {way: [] for way, package in _WAYS.items() if importlib.util.find_spec(package)}
        for _ in range(rounds):
            with tempfile.TemporaryDirectory() as folder:
                for way, found in runs.items():
                    found.append(_process(_WAYS[way], model, folder))
        rows += [
            {"case": f"{model}: {words}: {way}", **_times(stage, way, runs)}
            for stage, words in _STAGES.items()
            for way, found in runs.items()
            if stage in found[0]
        ]
    return rows


def _times(stage: str, way: str, runs: Runs) -> dict[str, Any]:
    # A first call compiles; what does not compile has no other.
    theirs = [run[stage.removesuffix(", first")] for run in runs.get("transformers", ())]
    found: dict[str, Any] = {}
    for i, clock in enumerate(("cpu", "wall")):
        took = [run[stage][i] for run in runs[way]]
        found |= {
            f"{clock}_s": statistics.median(took),
            f"{clock}_spread": f"{min(took):.3g} to {max(took):.3g}",
        }
        if theirs:
            peer = statistics.median(each[i] for each in theirs)
            found[f"{clock}_of_transformers"] = found[f"{clock}_s"] / peer
    resident = statistics.median(run["resident"] for run in runs[way])
    return found | {"resident": resident if stage == "load" else ""}


def _process(way: str, model: str, programs: str) -> dict[str, Any]:
    settings = {key: value for key, value in os.environ.items() if not key.startswith("JAX_")}
    settings |= {
        "JAX_COMPILATION_CACHE_DIR": programs,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "OMP_WAIT_POLICY": "PASSIVE",  # torch's threads wait without burning CPU-seconds
    }
    command = [sys.executable, "-m", "benchmarks.real_run", way, model, str(time.time())]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=settings)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
