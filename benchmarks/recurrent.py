"""RWKV-7 against the `rwkv` package: prompt and decode tokens per second, same random weights, same run.

The package, with torch, is left out where it is not installed. The recurrence is also measured by itself,
one token after another and by chunks, over lengths.
"""

import dataclasses
import functools
import importlib.util
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jmi
import jmi_models
from benchmarks.timing import compare, throughput
from jmi_models.families.blinkdl import ORIGINAL
from jmi_models.rwkv.architecture import Rwkv
from jmi_models.rwkv.wkv import Inputs, scan
from jmi_models.rwkv.wkv_chunked import chunked
from jmi_models.saving import stored_tensors

RANKS = (("rank_decay", 64), ("rank_a", 64), ("rank_v", 32), ("rank_gate", 128))
ARCH = Rwkv(7, 12, 768, 12, 64, 3072, 65536, RANKS)
"""The shape of RWKV-7 World 0.1B."""
PROMPTS, DECODED = (128, 1024), 32
LENGTHS = (128, 512, 2048, 8192)

Run = Callable[[], Any]


def models(repeats: int) -> list[dict[str, Any]]:
    """Tokens per second of reading a prompt and of greedy decoding, and CPU-seconds against jmi's."""
    params = jmi_models.init(ARCH, 0)
    lm, package = jmi.LanguageModel(ARCH, params), _package(params)
    rng, rows = np.random.default_rng(0), []
    for length in PROMPTS:
        tokens = rng.integers(0, ARCH.d_vocab, (1, length)).astype(np.int32)
        runs: dict[str, Run] = {"jmi": functools.partial(lm.run, tokens, exact=True)}
        if package is not None:
            runs["rwkv"] = functools.partial(package.forward, tokens[0].tolist(), None, full_output=True)
        rows += throughput(f"prompt of {length}", length, runs, repeats)
    prompt = rng.integers(0, ARCH.d_vocab, (1, 1)).astype(np.int32)
    in_list = dataclasses.replace(lm, params=jmi_models.listed(params))
    runs = {
        "jmi": functools.partial(lm.generate, prompt, DECODED, exact=True),
        "jmi, layers listed": functools.partial(in_list.generate, prompt, DECODED),
    }
    if package is not None:
        runs["rwkv"] = functools.partial(_decode, package, int(prompt[0, 0]))
    return rows + throughput(f"decode {DECODED}", DECODED, runs, repeats)


def recurrence(repeats: int) -> list[dict[str, Any]]:
    """Both implementations of both versions over lengths, with the memory of what is in between."""
    rows, rng = [], np.random.default_rng(0)
    for length in LENGTHS:
        r, k, v, w, kk, a = jnp.asarray(rng.normal(size=(6, 1, length, 12, 64)), jnp.float32)
        kk = kk / jnp.linalg.norm(kk, axis=-1, keepdims=True)
        shared = Inputs(r, k, jax.nn.sigmoid(w + 2), v, jnp.ones_like(k[..., 0]))
        cases = {
            6: shared._replace(bonus=jnp.ones((12, 64))),
            7: shared._replace(remove=-kk, add=kk * jax.nn.sigmoid(a)),
        }
        for version, inputs in cases.items():
            runs, memory = {}, {}
            for kind, function in {"scan": scan, "chunked": chunked}.items():
                runs[kind], memory[kind] = _compiled(inputs, function)
            times = compare(runs, max(1, repeats * 128 // length))
            rows += [
                {
                    "case": f"RWKV-{version}, {length} tokens: {kind}",
                    "cpu_ms": took.cpu * 1e3,
                    "wall_ms": took.wall * 1e3,
                    "temporary_MiB": memory[kind] / 2**20,
                }
                for kind, took in times.items()
            ]
    return rows


def _compiled(inputs: Inputs, function: Any) -> tuple[Run, int]:
    state = jnp.zeros((1, 12, 64, 64))
    program = jax.jit(lambda x, s: function(x, s)).lower(inputs, state).compile()
    memory: Any = program.memory_analysis()
    return functools.partial(program, inputs, state), memory.temp_size_in_bytes


def _package(params: Any) -> Any:
    """The model of the `rwkv` package with the same weights, or None."""
    if importlib.util.find_spec("rwkv") is None or importlib.util.find_spec("torch") is None:
        return None
    os.environ |= {"RWKV_V7_ON": "1", "RWKV_JIT_ON": "0", "RWKV_CUDA_ON": "0"}
    import rwkv.model
    import torch

    torch.set_num_threads(2)
    tensors = stored_tensors(ARCH, ORIGINAL[7], params)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.pth"
        torch.save({name: torch.from_numpy(np.array(value)) for name, value in tensors.items()}, file)
        return rwkv.model.RWKV(model=str(file.with_suffix("")), strategy="cpu fp32")


def _decode(package: Any, token: int) -> Any:
    logits, state = package.forward([token], None)
    for _ in range(DECODED):
        logits, state = package.forward([int(logits.argmax())], state)
    return logits
