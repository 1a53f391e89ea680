"""Forward passes against transformers and TransformerLens: same weights' shapes, same tokens, same run.

Peers that are not installed (transformers; TransformerLens before version 4) are left out.
All are GPT-2 small with random weights, in float32.
"""

import functools
import importlib.util
import warnings
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import jax
import numpy as np

import jmi
import jmi_models
from benchmarks.timing import compare
from jmi_models.families import FAMILIES

CONFIG: dict[str, Any] = {
    "model_type": "gpt2",
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "n_positions": 1024,
    "vocab_size": 50257,
    "activation_function": "gelu_new",
}
SHAPES = ((1, 15), (8, 15), (1, 128), (8, 128))

Forward = Callable[[np.ndarray], Any]


def forward(repeats: int) -> list[dict[str, Any]]:
    """CPU-seconds and wall seconds of one forward pass, and of one that captures every layer."""
    peers = {**_jmi(), **_transformers(), **_transformer_lens()}
    rng, rows = np.random.default_rng(0), []
    for shape in SHAPES:
        tokens = rng.integers(0, CONFIG["vocab_size"], shape).astype(np.int32)
        runs = {name: functools.partial(run, tokens) for name, run in peers.items()}
        times = compare(runs, repeats)
        own = times["jmi"]
        rows += [
            {
                "case": f"{shape[0]} x {shape[1]}: {name}",
                "cpu_s": took.cpu,
                "wall_s": took.wall,
                "cpu_of_jmi": took.cpu / own.cpu,
                "wall_of_jmi": took.wall / own.wall,
            }
            for name, took in times.items()
        ]
    return rows


def _jmi() -> dict[str, Forward]:
    arch = FAMILIES["gpt2"].from_config(CONFIG)
    lm = jmi.LanguageModel(arch, jmi_models.init(arch, 0))
    streams = ["blocks.*.hook_resid_post"]
    return {
        "jmi": lambda tokens: lm.run(tokens, exact=True).logits,
        "jmi, all residuals": lambda tokens: jax.tree.leaves(lm.run(tokens, capture=streams, exact=True)),
    }


def _transformers() -> dict[str, Forward]:
    if importlib.util.find_spec("transformers") is None:
        return {}
    import torch
    import transformers

    torch.set_num_threads(2)
    config = transformers.GPT2Config(**{k: v for k, v in CONFIG.items() if k != "model_type"})

    def made(attention: str) -> Forward:
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()

        def run(tokens: np.ndarray) -> Any:
            with torch.inference_mode():
                return model(torch.from_numpy(tokens).long(), use_cache=False).logits

        return run

    return {f"transformers, {attention}": made(attention) for attention in ("eager", "sdpa")}


def hooked_transformer(config: dict[str, Any]) -> Any:
    """TransformerLens's model of a GPT-2 config's shape; None when it is not installed."""
    # Version 4 has no HookedTransformer; what it offers instead wraps the model of transformers.
    if importlib.util.find_spec("transformer_lens") is None or version("transformer-lens") >= "4":
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformer_lens

    shape = transformer_lens.HookedTransformerConfig(
        n_layers=config["n_layer"],
        d_model=config["n_embd"],
        n_ctx=config["n_positions"],
        d_head=config["n_embd"] // config["n_head"],
        n_heads=config["n_head"],
        d_vocab=config["vocab_size"],
        act_fn=config["activation_function"],
        normalization_type="LN",
        seed=0,
    )
    return transformer_lens.HookedTransformer(shape).eval()


def _transformer_lens() -> dict[str, Forward]:
    model = hooked_transformer(CONFIG)
    if model is None:
        return {}
    import torch

    def run(tokens: np.ndarray) -> Any:
        with torch.inference_mode():
            return model(torch.from_numpy(tokens).long())

    def cached(tokens: np.ndarray) -> Any:
        with torch.inference_mode():
            return model.run_with_cache(torch.from_numpy(tokens).long(), names_filter=_is_stream)[0]

    return {"TransformerLens": run, "TransformerLens, all residuals": cached}


def _is_stream(name: str) -> bool:
    return name.endswith("hook_resid_post")
