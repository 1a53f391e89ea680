"""Dictionaries against peers: 1,024 tokens, 768 -> 24,576 features, k 32, random weights, float32.

Times are in products of the bare matrix, in the same library: what an encoder costs beyond reading its
weights once. Peers that are not installed (SAELens, sparsify, TransformerLens before version 4) are left out.
"""

import functools
import gc
import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import psutil

import jmi
import jmi_models
import jmi_sparse
from benchmarks.peers import CONFIG, hooked_transformer
from benchmarks.timing import compare
from jmi_models.families import FAMILIES

TOKENS, WIDTH, FEATURES, K = 1024, 768, 24_576, 32
CELLS, EVERY = 2000, 40
"""Injections, and the share of them that the peer's loop is timed on."""

Runs = dict[str, Callable[[], Any]]


def encoding(repeats: int) -> list[dict[str, Any]]:
    """Encoding and the whole pass of a TopK and a JumpReLU dictionary, in products, and their memory."""
    rows = []
    for runs in _all_runs():
        times = compare(runs, repeats) if runs else {}
        for name, took in times.items():
            product = times[next(iter(times))]
            rows.append(
                {
                    "case": name,
                    "cpu_s": took.cpu,
                    "wall_s": took.wall,
                    "products_cpu": took.cpu / product.cpu,
                    "products_wall": took.wall / product.wall,
                    "peak_mib": _peak(name),
                }
            )
    return rows


def _all_runs() -> list[Runs]:
    """Of each library, the bare product first."""
    draw = np.random.default_rng(0).normal
    arrays: dict[str, Any] = {
        "W_enc": draw(size=(WIDTH, FEATURES)).astype(np.float32) / 28,
        "W_dec": draw(size=(FEATURES, WIDTH)).astype(np.float32) / 28,
        "b_enc": np.zeros(FEATURES, np.float32),
        "b_dec": np.zeros(WIDTH, np.float32),
    }
    x = draw(size=(TOKENS, WIDTH)).astype(np.float32)
    return [_ours(arrays, x), _saelens(arrays, x), _sparsify(arrays, x)]


def _peak(name: str) -> float | None:
    """MiB that a case needs beside weights and inputs, in a process of its own; None where none can tell."""
    if not Path("/proc/self/clear_refs").exists():
        return None
    line = f"from benchmarks.dictionaries import print_peak; print_peak({name!r})"
    done = subprocess.run([sys.executable, "-c", line], capture_output=True, text=True, check=True)
    return round(float(done.stdout.split()[-1]), 1)


def print_peak(name: str) -> None:
    """Print how far resident memory rises while a case runs for the first time, what it compiles included."""
    run = {each: case for runs in _all_runs() for each, case in runs.items()}[name]
    gc.collect()
    before = psutil.Process().memory_info().rss
    # What was the highest mark so far is forgotten.
    Path("/proc/self/clear_refs").write_text("5")
    jax.block_until_ready(run())
    status = Path("/proc/self/status").read_text()
    print((int(status.partition("VmHWM:")[2].split()[0]) * 1024 - before) / 2**20)


def _ours(arrays: dict[str, np.ndarray], x: np.ndarray) -> Runs:
    given: dict[str, Any] = {name: jnp.asarray(array) for name, array in arrays.items()}
    read = jnp.asarray(x)
    top = jmi_sparse.Dictionary(**given, activation=jmi_sparse.TopK(K))
    jump = jmi_sparse.Dictionary(**given, activation=jmi_sparse.JumpReLU(jnp.full(FEATURES, 3.0)))
    product = jax.jit(lambda x, W: x @ W)
    dense = jax.jit(lambda d, x: d.encode(x))
    sparse = jax.jit(lambda d, x: d.encode_sparse(x, 64))
    whole = jax.jit(lambda d, x: d.reconstruct(x))
    return {
        "jax, x @ W_enc": lambda: product(read, top.W_enc),
        "jmi, TopK, encode_sparse": lambda: sparse(top, read),
        "jmi, TopK, encode": lambda: dense(top, read),
        "jmi, TopK, reconstruct": lambda: whole(top, read),
        "jmi, JumpReLU, encode": lambda: dense(jump, read),
        "jmi, JumpReLU, reconstruct": lambda: whole(jump, read),
    }


def _saelens(arrays: dict[str, np.ndarray], x: np.ndarray) -> Runs:
    if importlib.util.find_spec("sae_lens") is None:
        return {}
    import sae_lens
    import torch

    torch.set_num_threads(2)
    given = {name: torch.from_numpy(array) for name, array in arrays.items()}
    given_x = torch.from_numpy(x)
    runs: Runs = {"torch, x @ W_enc": _quiet(lambda: given_x @ given["W_enc"])}
    kinds: dict[str, Any] = {
        "TopK": (sae_lens.TopKSAE, sae_lens.TopKSAEConfig, {"k": K}, {}),
        "JumpReLU": (
            sae_lens.JumpReLUSAE,
            sae_lens.JumpReLUSAEConfig,
            {},
            {"threshold": torch.full((FEATURES,), 3.0)},
        ),
    }
    for name, (kind, config, options, more) in kinds.items():
        sae = kind(config(d_in=WIDTH, d_sae=FEATURES, apply_b_dec_to_input=False, **options))
        sae.load_state_dict(given | more)
        sae.eval()
        runs[f"SAELens, {name}, encode"] = _quiet(functools.partial(sae.encode, given_x))
        runs[f"SAELens, {name}, forward"] = _quiet(functools.partial(sae, given_x))
    return runs


def _sparsify(arrays: dict[str, np.ndarray], x: np.ndarray) -> Runs:
    if importlib.util.find_spec("sparsify") is None:
        return {}
    import torch
    from sparsify import SparseCoder, SparseCoderConfig

    given_x = torch.from_numpy(x)
    coder = SparseCoder(WIDTH, SparseCoderConfig(num_latents=FEATURES, k=K)).eval()
    with torch.no_grad():
        coder.encoder.weight.copy_(torch.from_numpy(arrays["W_enc"].T.copy()))
        coder.W_dec.copy_(torch.from_numpy(arrays["W_dec"]))
    return {
        "torch, x @ W_enc again": _quiet(lambda: given_x @ coder.encoder.weight.T),
        "sparsify, TopK, encode": _quiet(lambda: coder.encode(given_x)),
        "sparsify, TopK, forward": _quiet(lambda: coder(given_x)),
    }


def _quiet(run: Callable[[], Any]) -> Callable[[], Any]:
    import torch

    def timed() -> None:
        with torch.inference_mode():
            run()

    return timed


def _gpt2() -> jmi.LanguageModel:
    arch = FAMILIES["gpt2"].from_config(CONFIG)
    return jmi.LanguageModel(arch, jmi_models.init(arch, 0))


def layers(repeats: int) -> list[dict[str, Any]]:
    """Features of all 12 layers in one run, against the run and twelve products of one matrix."""
    lm, key = _gpt2(), jax.random.key(0)
    rows = jax.random.normal(key, (12, FEATURES, WIDTH)) / 28
    one = jmi_sparse.Dictionary(
        W_enc=jnp.swapaxes(rows, 1, 2),
        W_dec=rows,
        b_dec=jnp.zeros((12, WIDTH)),
        activation=jmi_sparse.TopK(K),
        b_enc=jnp.zeros((12, FEATURES)),
        hook_in="blocks.*.hook_resid_post",
        hook_out="blocks.*.hook_resid_post",
    )
    dictionaries = jmi_sparse.DictionarySet(one, tuple(range(12)))
    tokens = np.random.default_rng(0).integers(0, CONFIG["vocab_size"], (8, TOKENS // 8)).astype(np.int32)
    x = jax.random.normal(key, (TOKENS, WIDTH))
    product = jax.jit(lambda x, W: x @ W)
    matrix = one.W_enc[0]
    spliced = jmi_sparse.splice(lm, dictionaries)
    times = compare(
        {
            "the model alone": lambda: lm.run(tokens, logits_at=-1, exact=True).logits,
            "one product": lambda: product(x, matrix),
            "features of 12 layers": lambda: jmi_sparse.features(lm, tokens, dictionaries, capacity=K),
            "spliced at 12 layers": lambda: spliced.run(tokens, logits_at=-1, exact=True).logits,
        },
        repeats,
    )
    alone, one_product = times["the model alone"], times["one product"]
    return [
        {
            "case": name,
            "cpu_s": took.cpu,
            "wall_s": took.wall,
            "beyond_the_model_in_12_products": (took.wall - alone.wall) / (12 * one_product.wall),
        }
        for name, took in times.items()
    ]


def injections(repeats: int) -> list[dict[str, Any]]:
    """2,000 injections (feature x strength x seed) at one position, against a loop with hooks."""
    lm, layer, position = _gpt2(), 6, 9
    rows = np.random.default_rng(0).normal(size=(FEATURES, WIDTH)).astype(np.float32)
    tokens = np.random.default_rng(1).integers(0, CONFIG["vocab_size"], (1, 15)).astype(np.int32)
    ids = np.random.default_rng(2).integers(0, FEATURES, (20, 10))
    strengths = np.linspace(0.5, 5, 10)
    decoder = jnp.asarray(rows)
    sae = jmi_sparse.Dictionary(decoder.T, decoder, jnp.zeros(WIDTH), jmi_sparse.ReLU(), jnp.zeros(FEATURES))
    pairs = np.stack([np.full(200, layer), ids.reshape(-1)], axis=1)
    grid = jmi.Grid(feature=pairs, strength=strengths)
    site = f"blocks.{layer}.hook_resid_post"
    hooks = jmi_sparse.inject(lm, {site: sae}, grid["feature"], position, grid["strength"])
    goal = jmi.metrics.LogProb(5)

    def swept() -> Any:
        return jmi.sweep(lm, tokens, hooks, goal, logits_at=-1, progress=False)

    cases: dict[str, tuple[int, Callable[[], Any]]] = {"jmi": (CELLS, swept)}
    model = hooked_transformer(CONFIG)
    if model is not None:
        cases["TransformerLens, a loop with hooks"] = (CELLS // EVERY, _looped(model, tokens, rows, pairs))
    found: list[dict[str, Any]] = []
    for name, (cells, run) in cases.items():
        took = compare({name: run}, repeats)[name]
        found.append({"case": name, "cpu_s_per_cell": took.cpu / cells, "wall_s_per_cell": took.wall / cells})
    return [{**row, "cpu_of_jmi": row["cpu_s_per_cell"] / found[0]["cpu_s_per_cell"]} for row in found]


def _looped(model: Any, tokens: np.ndarray, rows: np.ndarray, pairs: np.ndarray) -> Callable[[], Any]:
    import torch

    torch.set_num_threads(2)
    given, decoder = torch.from_numpy(tokens).long(), torch.from_numpy(rows)

    def run() -> None:
        with torch.inference_mode():
            for _, feature in pairs[: CELLS // EVERY]:

                def add(value: Any, hook: Any, feature: int = int(feature)) -> Any:
                    value[:, 9] += 2.0 * decoder[feature]
                    return value

                logits = model.run_with_hooks(given, fwd_hooks=[("blocks.6.hook_resid_post", add)])
                logits[:, -1].log_softmax(-1)[:, 5]

    return run


def rows_on_disk(repeats: int) -> list[dict[str, Any]]:
    """Rows of a decoder of 2 GB on disk: ten thousand of them, one call."""
    from safetensors.numpy import save_file

    ids = np.random.default_rng(0).integers(0, 40_960, 10_000)
    with tempfile.TemporaryDirectory() as folder:
        for layer in range(4):
            encoder = {
                f"W_enc_{layer}": np.zeros((40_960, 8), np.float16),
                f"b_enc_{layer}": np.zeros(40_960, np.float16),
                f"b_dec_{layer}": np.zeros(2048, np.float16),
            }
            decoder = np.ones((40_960, 4 - layer, 2048), np.float16)
            save_file(encoder, Path(folder) / f"W_enc_{layer}.safetensors")
            save_file({f"W_dec_{layer}": decoder}, Path(folder) / f"W_dec_{layer}.safetensors")
        (Path(folder) / "config.yaml").write_text(
            "model_name: made\nmodel_kind: cross_layer_transcoder\nfeature_input_hook: hook_resid_mid\n"
            "feature_output_hook: hook_mlp_out\n"
        )
        decoders = jmi_sparse.open_decoder(folder)
        times = compare({"rows": lambda: decoders.rows(0, ids, 3)}, repeats)["rows"]
    return [{"case": "10,000 rows of 2,048 in float16, as float32", "rows_per_s": 10_000 / times.wall}]
