"""Attribution and circuits on GPT-2 small's shape: 8 x 15 tokens, float32, random weights.

Everything is given as a multiple of one forward pass of jmi in the same run. TransformerLens, where it is
installed, scores the same nodes: its weights without gradients, the pass over the source prompts included.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

import jmi
import jmi_models
from benchmarks.peers import CONFIG, hooked_transformer
from benchmarks.sweeps import BATCH, LENGTH
from benchmarks.timing import compare
from jmi.interp.attribution.attribution_patching import attribution_patching
from jmi.interp.edges.eap import eap
from jmi.interp.edges.faithfulness import faithfulness
from jmi.interp.edges.selection import top_edges
from jmi_models.families import FAMILIES

NODES = ["blocks.*.attn.hook_z", "blocks.*.hook_mlp_out"]
DIFFERENCE = jmi.metrics.LogitDiff(5, 7)


def attribution(repeats: int) -> list[dict[str, Any]]:
    """CPU-seconds and wall seconds of node and edge attribution and of running one circuit."""
    arch = FAMILIES["gpt2"].from_config(CONFIG)
    lm = jmi.LanguageModel(arch, jmi_models.init(arch, 0))
    given = np.random.default_rng(0).integers(0, CONFIG["vocab_size"], (2, BATCH, LENGTH))
    clean, corrupted = jnp.asarray(given, jnp.int32)
    pair = (lm, clean, corrupted)
    last: dict[str, Any] = {"metric": DIFFERENCE, "logits_at": -1, "exact": True}
    nodes = functools.partial(attribution_patching, *pair, NODES, into="clean", **last)
    edges = functools.partial(eap, *pair, into="clean", **last)
    scores = edges()
    kept = top_edges(scores, 1000)
    cases = {
        "one forward pass": lambda: lm.run(clean, logits_at=-1, exact=True).logits,
        "nodes: every head and MLP": lambda: nodes().captures,
        **_transformer_lens(given),
        "EAP: every edge": lambda: edges().values,
        "EAP-IG: every edge, 5 steps": lambda: edges(steps=5).values,
        "one circuit of 1,000 edges": lambda: faithfulness(*pair, kept[None], **last).values,
    }
    times = compare(cases, repeats)
    forward = times["one forward pass"]
    return [
        {
            "case": f"{case} ({scores.graph.n_edges})" if "every edge" in case else case,
            "cpu_s": took.cpu,
            "wall_s": took.wall,
            "cpu_of_forward": took.cpu / forward.cpu,
            "wall_of_forward": took.wall / forward.wall,
        }
        for case, took in times.items()
    ]


def _transformer_lens(tokens: np.ndarray) -> dict[str, Callable[[], Any]]:
    model = hooked_transformer(CONFIG)
    if model is None:
        return {}
    import torch

    model.requires_grad_(False)
    clean, corrupted = (torch.from_numpy(t).long() for t in tokens)

    def wanted(name: str) -> bool:
        return name.endswith(("attn.hook_z", "hook_mlp_out"))

    def run() -> Any:
        with torch.inference_mode():
            source = model.run_with_cache(corrupted, names_filter=wanted)[1]
        scores = {}
        values = {}

        def keep(value: Any, hook: Any) -> None:
            values[hook.name] = value.detach()

        def score(gradient: Any, hook: Any) -> None:
            scores[hook.name] = (gradient * (source[hook.name] - values[hook.name])).sum(-1)

        # Gradients begin at the embedding, for no weight has one.
        begin = ("hook_embed", lambda value, hook: value.requires_grad_())
        with model.hooks(fwd_hooks=[begin, (wanted, keep)], bwd_hooks=[(wanted, score)]):
            logits = model(clean)[:, -1]
            (logits[:, 5] - logits[:, 7]).sum().backward()
        return scores

    return {"nodes: TransformerLens": run}
