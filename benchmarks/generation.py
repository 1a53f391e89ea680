"""Greedy decoding with a cache against peers: GPT-2 small's shape, random weights, float32, same run.

Peers that are not installed are left out. The peers' loops stop at nothing but the number of tokens.
"""

import dataclasses
import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

import jmi
import jmi_models
from benchmarks.peers import CONFIG, hooked_transformer
from benchmarks.timing import throughput
from jmi_models.families import FAMILIES

PROMPT, DECODED = 32, 32
BATCHES = (1, 8)

Generate = Callable[[np.ndarray], Any]


def generation(repeats: int) -> list[dict[str, Any]]:
    """Tokens per second, and CPU-seconds against jmi's; the prompt is read within."""
    runs = {**_jmi(), **_transformers(), **_transformer_lens()}
    rng, rows = np.random.default_rng(0), []
    for batch in BATCHES:
        tokens = rng.integers(0, CONFIG["vocab_size"], (batch, PROMPT)).astype(np.int32)
        cases = {name: functools.partial(run, tokens) for name, run in runs.items()}
        rows += throughput(f"{batch} x {DECODED} behind {PROMPT}", batch * DECODED, cases, repeats)
    return rows


def _jmi() -> dict[str, Generate]:
    arch = FAMILIES["gpt2"].from_config(CONFIG)
    lm = jmi.LanguageModel(arch, jmi_models.init(arch, 0))
    in_list = dataclasses.replace(lm, params=jmi_models.listed(lm.params))
    steer = {"blocks.6.hook_resid_post": jmi.Add(jnp.ones(CONFIG["n_embd"]))}
    return {
        "jmi": lambda tokens: lm.generate(tokens, DECODED, exact=True).tokens,
        "jmi, layers listed": lambda tokens: in_list.generate(tokens, DECODED, exact=True).tokens,
        "jmi, layers listed, steered": lambda tokens: (
            in_list.generate(tokens, DECODED, hooks=steer, step_hooks=steer, exact=True).tokens
        ),
    }


def _transformers() -> dict[str, Generate]:
    if importlib.util.find_spec("transformers") is None:
        return {}
    import torch
    import transformers

    torch.set_num_threads(2)
    config = transformers.GPT2Config(**{k: v for k, v in CONFIG.items() if k != "model_type"})
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    exactly = {"max_new_tokens": DECODED, "min_new_tokens": DECODED, "do_sample": False}

    def run(tokens: np.ndarray) -> Any:
        ids = torch.from_numpy(tokens).long()
        with torch.inference_mode():
            return model.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=0, **exactly)

    return {"transformers": run}


def _transformer_lens() -> dict[str, Generate]:
    model = hooked_transformer(CONFIG)
    if model is None:
        return {}
    import torch

    options = {"max_new_tokens": DECODED, "stop_at_eos": False, "do_sample": False, "verbose": False}

    def run(tokens: np.ndarray) -> Any:
        with torch.inference_mode():
            return model.generate(torch.from_numpy(tokens).long(), return_type="tokens", **options)

    return {"TransformerLens": run}
