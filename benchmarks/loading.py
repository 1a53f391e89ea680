"""Loading a folder: seconds and peak memory against numpy, each way in processes of its own."""

import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jmi_models
from benchmarks.models import decoder

# 0.8 GiB of float32; the largest tensor, the embedding, is 62 MiB.
_ARCH = decoder(16, 1024, 16, 2816, 16000)
_CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 16,
    "hidden_size": 1024,
    "num_attention_heads": 16,
    "intermediate_size": 2816,
    "vocab_size": 16000,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}

_CHILD = """
import json, sys, threading, time

def resident():
    lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return [int(lines[name].split()[0]) * 1024 for name in ("RssAnon", "VmRSS")]

folder, way = sys.argv[1:]
if way == "jmi":
    import jax, jmi_models
    jax.numpy.zeros(1).block_until_ready()
    load = lambda: jax.block_until_ready(jmi_models.load(folder, progress=False).params)
elif way == "transformers":
    import torch, transformers
    transformers.logging.disable_progress_bar()
    def load():
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        # Its weights may be mapped only; reading each once makes them as present as jmi's.
        return model, [float(weight.sum()) for weight in model.parameters()]
else:
    from safetensors.numpy import load_file
    def load():
        arrays = load_file(folder + "/model.safetensors")
        return arrays, [float(array.sum()) for array in arrays.values()]

peak, stop, base = [0, 0], threading.Event(), resident()
def watch():
    while not stop.is_set():
        peak[:] = [max(p, now - b) for p, now, b in zip(peak, resident(), base)]
        time.sleep(0.005)
thread = threading.Thread(target=watch); thread.start()
wall, cpu = time.perf_counter(), time.process_time()
held = load()
seconds = time.perf_counter() - wall, time.process_time() - cpu
stop.set(); thread.join()
print(json.dumps({"wall": seconds[0], "cpu": seconds[1], "anonymous": peak[0], "resident": peak[1]}))
"""
_WAYS = {
    "numpy": "safetensors into numpy, then read once",
    "transformers": "transformers from_pretrained, then read once",
    "jmi": "jmi_models.load",
}


def loading(rounds: int) -> list[dict[str, Any]]:
    """Loading 0.8 GiB of float32 from the page cache, in a fresh process each time, in turn.

    Peaks are above what the process held before, per byte of the model: ``anonymous`` is memory of its own,
    ``resident`` counts mapped pages of the file too. Of the seconds the fastest round counts, of the peaks
    the highest.
    """
    with tempfile.TemporaryDirectory() as folder:
        jmi_models.save(folder, _ARCH, jmi_models.init(_ARCH, 0), _CONFIG)
        size = (Path(folder) / "model.safetensors").stat().st_size
        ways = [way for way in _WAYS if way != "transformers" or importlib.util.find_spec(way)]
        took: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
        for _ in range(rounds):
            for way in ways:
                took[way].append(_child(folder, way))
    best = {
        way: {key: min(run[key] for run in runs) for key in ("wall", "cpu")} for way, runs in took.items()
    }
    return [
        {
            "case": _WAYS[way],
            "model_mib": size / 2**20,
            "wall_s": best[way]["wall"],
            "cpu_s": best[way]["cpu"],
            "wall_of_numpy": best[way]["wall"] / best["numpy"]["wall"],
            "cpu_of_numpy": best[way]["cpu"] / best["numpy"]["cpu"],
            "peak_anonymous": max(run["anonymous"] for run in runs) / size,
            "peak_resident": max(run["resident"] for run in runs) / size,
        }
        for way, runs in took.items()
    ]


def _child(folder: str, way: str) -> dict[str, float]:
    command = [sys.executable, "-c", _CHILD, folder, way]
    found: dict[str, float] = json.loads(
        subprocess.run(command, check=True, capture_output=True, text=True).stdout
    )
    return found
