"""Peak host memory of loading, measured: the model, and little more than one tensor."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import jmi
from tests.oracles import llama_grid

CONFIG = {
    **llama_grid.GRID["multi_query_tied"],
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 14,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "vocab_size": 24000,
}
# The mask of finite entries (a quarter of a tensor) and small ones in flight; well below a second tensor.
SLACK = 30e6

# Loads the model twice and keeps the first: then JAX, the compiler and the compiled code, which do not
# grow with the model, stand before the count begins.
MEASURE = """
import sys, threading, time
import jax, jmi_models

def anonymous():
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("RssAnon")).split()[1])

def watch():
    while not done:
        peaks.append(anonymous())
        time.sleep(0.001)

first = jax.block_until_ready(jmi_models.load(sys.argv[1]).params)
peaks, done, before = [], False, anonymous()
thread = threading.Thread(target=watch)
thread.start()
params = jax.block_until_ready(jmi_models.load(sys.argv[1]).params)
done = True
thread.join()
print(max(peaks) - before, anonymous() - before, sum(x.nbytes for x in jax.tree.leaves(params)))
"""


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="resident memory is read from /proc (Linux)"
)
def test_loading_needs_the_model_and_one_tensor(tmp_path: Path) -> None:
    rng, weights = np.random.default_rng(0), {}
    for name, shape in llama_grid.shapes(CONFIG).items():
        weights[name] = rng.standard_normal(shape, np.float32)
    largest = max(value.nbytes for value in weights.values())
    folder = llama_grid.write_folder(tmp_path, CONFIG, weights)
    del weights
    paths = os.pathsep.join([str(Path(jmi.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, str(folder)],
        env={**environment, "PYTHONPATH": paths, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=True,
    )
    peak, resident, model = map(int, result.stdout.split())
    assert model > 150e6
    assert resident >= 0.9 * model  # else nothing was measured
    assert peak <= model + largest + SLACK, (peak, model, largest)
