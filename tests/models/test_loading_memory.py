"""Peak host memory of loading, measured: the model, and a piece of one tensor."""

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
PIECE = 16 << 20
SLACK = 8e6  # what Python and numpy take meanwhile; a sixth of the largest tensor

MEASURE = """
import sys, threading, time
import jax, jmi_models
from jax import monitoring

def held():
    lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return [1024 * int(lines[name].split()[0]) for name in ("RssAnon", "VmRSS")]

def watch():
    while not done:
        peaks.append(held())
        time.sleep(0.001)

folder, *dtype = sys.argv[1:]
load = jmi_models.load  # imports what loads, which is no part of the model
jax.block_until_ready(jax.device_put(0))
programs, peaks, done, before = [], [], False, held()
monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **_: programs.append(event) if event.startswith("/jax/core/compile/") else None
)
thread = threading.Thread(target=watch)
thread.start()
params = jax.block_until_ready(load(folder, dtype=dtype[0]).params)
done = True
thread.join()
anonymous, resident = (max(each) for each in zip(*peaks))
size = sum(x.nbytes for x in jax.tree.leaves(params))
print(anonymous - before[0], resident - before[1], held()[0] - before[0], size, len(programs))
"""


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="resident memory is read from /proc (Linux)"
)
@pytest.mark.parametrize(
    ("stored", "wanted"), [("float32", "float32"), ("bfloat16", "float32"), ("bfloat16", "bfloat16")]
)
def test_loading_needs_the_model_and_a_piece_of_a_tensor(tmp_path: Path, stored: str, wanted: str) -> None:
    rng, weights = np.random.default_rng(0), {}
    for name, shape in llama_grid.shapes(CONFIG).items():
        weights[name] = rng.standard_normal(shape, np.float32).astype(stored)
    largest = max(value.nbytes for value in weights.values())
    folder = llama_grid.write_folder(tmp_path, CONFIG, weights)
    del weights
    paths = os.pathsep.join([str(Path(jmi.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, str(folder), wanted],
        env={**environment, "PYTHONPATH": paths, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=True,
    )
    anonymous, resident, after, model, programs = map(int, result.stdout.split())
    assert programs == 0
    if stored == "float32":
        assert largest > PIECE + 2 * SLACK
    assert model > 100e6
    assert after >= 0.95 * model  # else nothing was measured
    assert anonymous <= model + SLACK, (anonymous, model)  # tensors are mapped, and copied in strips
    assert resident <= model + PIECE + SLACK, (resident, model)
    if stored == wanted == "float32":
        assert resident <= 1.15 * model, (resident, model)
