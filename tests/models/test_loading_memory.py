"""Peak host memory of loading, measured: the model, and a piece of one tensor."""

import json
import os
import subprocess
import sys
from pathlib import Path

import ml_dtypes
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


def measured(folder: Path, dtype: str) -> tuple[int, ...]:
    """Bytes that loading takes in a process of its own: at most of its own, at most with what is mapped, and
    afterwards; of the model; and the programs that were compiled."""
    paths = os.pathsep.join([str(Path(jmi.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, str(folder), dtype],
        env={**environment, "PYTHONPATH": paths, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=True,
    )
    return tuple(map(int, result.stdout.split()))


linux = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="resident memory is read from /proc (Linux)"
)


@linux
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
    anonymous, resident, after, model, programs = measured(folder, wanted)
    assert programs == 0
    if stored == "float32":
        assert largest > PIECE + 2 * SLACK
    assert model > 100e6
    assert after >= 0.95 * model  # else nothing was measured
    assert anonymous <= model + SLACK, (anonymous, model)  # tensors are mapped, and copied in strips
    assert resident <= model + PIECE + SLACK, (resident, model)
    if stored == wanted == "float32":
        assert resident <= 1.15 * model, (resident, model)


def gptq(rng: np.random.Generator, outputs: int, inputs: int) -> dict[str, np.ndarray]:
    zeros = rng.integers(0, 2**31 - 1, (inputs // 128, outputs // 8), np.int32) & 0x77777777
    return {
        ".qweight": rng.integers(0, 2**31 - 1, (inputs // 8, outputs), np.int32),
        ".qzeros": zeros,
        ".scales": rng.uniform(0, 0.01, (inputs // 128, outputs)).astype(np.float16),
    }


def fp8(rng: np.random.Generator, outputs: int, inputs: int) -> dict[str, np.ndarray]:
    return {
        ".weight": rng.normal(0, 50, (outputs, inputs)).astype(ml_dtypes.float8_e4m3fn),
        ".weight_scale_inv": rng.uniform(0, 0.01, (outputs // 128, inputs // 128)).astype(np.float32),
    }


def nf4(rng: np.random.Generator, outputs: int, inputs: int) -> dict[str, np.ndarray]:
    state = json.dumps({"shape": [outputs, inputs], "blocksize": 64}).encode()
    return {
        ".weight": rng.integers(0, 256, (outputs * inputs // 2, 1), np.uint8),
        ".weight.absmax": rng.uniform(0, 0.1, outputs * inputs // 64).astype(np.float32),
        ".weight.quant_map": np.linspace(-1, 1, 16, dtype=np.float32),
        ".weight.quant_state.bitsandbytes__nf4": np.frombuffer(state, np.uint8),
    }


PACKED = {
    "gptq": (gptq, {"quant_method": "gptq", "bits": 4, "group_size": 128}),
    "fp8": (fp8, {"quant_method": "fp8", "weight_block_size": [128, 128]}),
    "nf4": (nf4, {"quant_method": "bitsandbytes", "load_in_4bit": True}),
}


@linux
@pytest.mark.parametrize(
    "method", ["gptq", *(pytest.param(m, marks=pytest.mark.slow) for m in ("fp8", "nf4"))]
)
def test_quantised_weights_need_no_more_than_a_few_pieces_beside_the_model(
    method: str, tmp_path: Path
) -> None:
    rng, weights = np.random.default_rng(0), {}
    pack, quantised = PACKED[method]
    for name, shape in llama_grid.shapes(CONFIG).items():
        stem = name.removesuffix(".weight")
        if stem.endswith("_proj"):
            weights |= {f"{stem}{end}": value for end, value in pack(rng, *shape).items()}
        else:
            weights[name] = rng.standard_normal(shape, np.float32)
    folder = llama_grid.write_folder(tmp_path, {**CONFIG, "quantization_config": quantised}, weights)
    stored = sum(value.nbytes for value in weights.values())
    del weights
    anonymous, _, after, model, programs = measured(folder, "float32")
    assert programs == 0
    assert model > 100e6
    assert stored < 0.75 * model
    assert after >= 0.95 * model
    assert anonymous <= model + 2 * PIECE + SLACK, (anonymous, model)
