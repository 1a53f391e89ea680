"""Activation patching against peers: random weights, float32.

The peers run one forward pass per cell. They, and jmi where nothing is shared, are timed on every twelfth
cell, spread over the layers; times are per cell. Peers that are not installed are left out.
"""

import functools
import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import jmi
import jmi_models
from benchmarks.peers import CONFIG, hooked_transformer
from benchmarks.timing import compare
from jmi_models.families import FAMILIES

BATCH, LENGTH = 8, 15
EVERY = 12
DIFFERENCE = jmi.metrics.LogitDiff(5, 7)


class Patching(NamedTuple):
    """What is patched: one position of the stream, or one head's output, in one layer per cell."""

    config: dict[str, Any]
    shape: tuple[int, int]
    site: str
    axis: str

    @property
    def cells(self) -> list[tuple[int, int]]:
        """Every layer with every position or head."""
        number = self.shape[1] if self.axis == "positions" else self.config["n_head"]
        return [(layer, index) for layer in range(self.config["n_layer"]) for index in range(number)]


EXPERIMENTS = {
    "GPT-2 small, 8 x 15, resid_pre": Patching(CONFIG, (BATCH, LENGTH), "hook_resid_pre", "positions"),
    "GPT-2 small, 8 x 15, heads": Patching(CONFIG, (BATCH, LENGTH), "attn.hook_z", "heads"),
    "width 32, 1 x 8, resid_pre": Patching(
        CONFIG | {"n_embd": 32, "n_head": 4, "vocab_size": 1000}, (1, 8), "hook_resid_pre", "positions"
    ),
}

Cases = dict[str, tuple[int, Callable[[], Any]]]


def sweeps(repeats: int) -> list[dict[str, Any]]:
    """CPU-seconds and wall seconds per cell of patching every layer with every position or head."""
    rows = []
    for name, patching in EXPERIMENTS.items():
        tokens = np.random.default_rng(0).integers(0, patching.config["vocab_size"], (2, *patching.shape))
        cases = _cases(patching, tokens.astype(np.int32))
        times = {case: compare({case: run}, repeats)[case] for case, (_, run) in cases.items()}
        own = times["jmi"]
        for case, took in times.items():
            cells = cases[case][0]
            rows.append(
                {
                    "case": f"{name}: {case}",
                    "cells": cells,
                    "cpu_s_per_cell": took.cpu / cells,
                    "wall_s_per_cell": took.wall / cells,
                    "cpu_of_jmi": took.cpu / cells / (own.cpu / cases["jmi"][0]),
                    "wall_of_jmi": took.wall / cells / (own.wall / cases["jmi"][0]),
                }
            )
    return rows


def _cases(patching: Patching, tokens: np.ndarray) -> Cases:
    """What is timed, with the number of its cells."""
    cells = patching.cells[::EVERY]
    return {
        **_ours(patching, tokens, patching.cells),
        **_transformers(patching, tokens, cells),
        **_transformer_lens(patching, tokens, cells),
    }


def _ours(patching: Patching, tokens: np.ndarray, cells: list[tuple[int, int]]) -> Cases:
    arch = FAMILIES["gpt2"].from_config(patching.config)
    lm = jmi.LanguageModel(arch, jmi_models.init(arch, 0))
    site = f"blocks.*.{patching.site}"
    source = lm.run(tokens[1], capture=[site], exact=True).stack(site)

    def run(params: Any, every: int, share: bool) -> Any:
        layers, index = np.array(cells[::every]).T
        grid = jmi.Grid(cell=range(len(layers)))
        patch = jmi.Patch(source, **{patching.axis: grid.take("cell", index)})
        hooks = {site: jmi.At(grid.take("cell", layers), jmi.PerLayer(patch))}
        return jmi.sweep(
            jmi.LanguageModel(arch, params),
            tokens[0],
            hooks,
            DIFFERENCE,
            logits_at=-1,
            share=share,
            progress=False,
            exact=True,
        )

    listed = jmi_models.listed(lm.params)
    return {
        "jmi": (len(cells), functools.partial(run, lm.params, 1, True)),
        "jmi, layers listed": (len(cells), functools.partial(run, listed, 1, True)),
        "jmi, nothing shared": (len(cells[::EVERY]), functools.partial(run, lm.params, EVERY, False)),
    }


def _transformers(patching: Patching, tokens: np.ndarray, cells: list[tuple[int, int]]) -> Cases:
    """A loop with forward pre-hooks of torch, which see the stream."""
    if importlib.util.find_spec("transformers") is None or patching.axis != "positions":
        return {}
    import torch
    import transformers

    torch.set_num_threads(2)
    config = transformers.GPT2Config(**{k: v for k, v in patching.config.items() if k != "model_type"})
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    clean, corrupted = (torch.from_numpy(t).long() for t in tokens)
    with torch.inference_mode():
        source = model(corrupted, use_cache=False, output_hidden_states=True).hidden_states

    def one(layer: int, position: int) -> Any:
        def patch(module: Any, args: Any, kwargs: Any) -> Any:
            stream = args[0].clone()
            stream[:, position] = source[layer][:, position]
            return (stream, *args[1:]), kwargs

        handle = model.transformer.h[layer].register_forward_pre_hook(patch, with_kwargs=True)
        logits = model(clean, use_cache=False).logits[:, -1]
        handle.remove()
        return logits[:, 5] - logits[:, 7]

    def run() -> Any:
        with torch.inference_mode():
            return [one(*cell) for cell in cells]

    return {"transformers, a loop with hooks": (len(cells), run)}


def _transformer_lens(patching: Patching, tokens: np.ndarray, cells: list[tuple[int, int]]) -> Cases:
    model = hooked_transformer(patching.config)
    if model is None:
        return {}
    import torch

    clean, corrupted = (torch.from_numpy(t).long() for t in tokens)
    with torch.inference_mode():
        cache = model.run_with_cache(corrupted)[1]

    def one(layer: int, index: int) -> Any:
        name = f"blocks.{layer}.{patching.site}"
        where = (slice(None),) * (1 if patching.axis == "positions" else 2) + (index,)

        def patch(value: Any, hook: Any) -> Any:
            value[where] = cache[name][where]
            return value

        logits = model.run_with_hooks(clean, fwd_hooks=[(name, patch)])[:, -1]
        return logits[:, 5] - logits[:, 7]

    def run() -> Any:
        with torch.inference_mode():
            return [one(*cell) for cell in cells]

    return {"TransformerLens, a loop": (len(cells), run)}
