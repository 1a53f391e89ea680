"""Loading: peak host memory and speed, in a process of its own, against reading the bytes alone."""

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
import jax, numpy as np
jax.numpy.zeros(1).block_until_ready()
import jmi_models

def anonymous():
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024

folder, way = sys.argv[1:]
peak, stop, base = [0], threading.Event(), anonymous()
def watch():
    while not stop.is_set():
        peak[0] = max(peak[0], anonymous() - base)
        time.sleep(0.001)
thread = threading.Thread(target=watch); thread.start()
start = time.perf_counter()
if way == "jmi":
    lm = jmi_models.load(folder, progress=False)
    jax.block_until_ready(lm.params)
else:
    from safetensors.numpy import load_file
    arrays = load_file(folder + "/model.safetensors")
seconds = time.perf_counter() - start
stop.set(); thread.join()
print(json.dumps({"seconds": seconds, "peak": peak[0]}))
"""


def loading() -> list[dict[str, Any]]:
    """Seconds and peak anonymous memory of loading 0.8 GiB, jmi against opening it in numpy.

    numpy may map pages without reading them, so its seconds are a floor, not a peer.
    """
    with tempfile.TemporaryDirectory() as folder:
        jmi_models.save(folder, _ARCH, jmi_models.init(_ARCH, 0), _CONFIG)
        size = (Path(folder) / "model.safetensors").stat().st_size
        rows = []
        for way in ("numpy", "jmi"):
            command = [sys.executable, "-c", _CHILD, folder, way]
            took = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            rows.append(
                {
                    "case": {"numpy": "safetensors into numpy", "jmi": "jmi_models.load"}[way],
                    "model_mib": size / 2**20,
                    "seconds": took["seconds"],
                    "peak_mib": took["peak"] / 2**20,
                    "peak_ratio": took["peak"] / size,
                }
            )
    return rows
