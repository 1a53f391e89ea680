"""Lines whose mistakes the suite must notice: masks, scales, slots, shares and offsets.

A line is found by its text, which must stand in the packages once: where it lies does not matter, and when
it is rewritten its entry here is, too.
"""

import dataclasses
from collections.abc import Mapping

MODELS, CORE, INTERP = "tests/models", "tests/core", "tests/interp"


@dataclasses.dataclass(frozen=True)
class Mutation:
    """``old`` becomes ``new``, and ``tests`` (files that run the line, likeliest first) should fail."""

    old: str
    new: str
    tests: tuple[str, ...]


def _oracle(*configs: str) -> tuple[str, ...]:
    test = f"{MODELS}/test_families.py::test_every_site_equals_the_committed_oracle"
    return tuple(f"{test}[{config}-float64]" for config in configs)


PADDED = (f"{CORE}/test_padding.py", f"{INTERP}/test_padding.py")
SWEEPS = (
    f"{CORE}/sweeps/test_sweep_cells.py::test_cells_are_what_each_of_them_prepares",
    f"{CORE}/sweeps/test_sweep_sharing.py",
)

MUTATIONS: Mapping[str, Mutation] = {
    # Masks.
    "causal mask": Mutation(
        "keys[:, None, None, :] <= queries",
        "keys[:, None, None, :] <= 1 + queries",
        _oracle("llama/longrope_beyond", "gpt2/plain"),
    ),
    "window": Mutation(
        "- counted[:, None, None, :] < window)",
        "- counted[:, None, None, :] <= window)",
        _oracle("mistral/window", "gemma2/capped"),
    ),
    "window counts padding": Mutation(
        "counted = keys if key_mask is None else",
        "counted = keys if True else",
        (f"{CORE}/test_generation.py::test_padding_changes_nothing",),
    ),
    "mask of keys": Mutation(
        "mask & key_mask[:, None, None, :].astype(bool)",
        "mask",
        (f"{MODELS}/test_padding.py::test_padding_on_either_side_changes_nothing",),
    ),
    "padding writes to the state": Mutation(
        "write=jnp.where(real[..., 0], x.write, 0)",
        "write=x.write",
        (f"{MODELS}/test_rwkv.py::test_padding_on_either_side_changes_nothing",),
    ),
    "padding in selections": Mutation(
        "part = axis_mask(selector, shape[axis], site.mask if name in TOKENS else None)",
        "part = axis_mask(selector, shape[axis], None)",
        (f"{CORE}/test_padding.py::test_hooks", *PADDED),
    ),
    # Scales.
    "scale of scores by layer": Mutation(
        "(jnp.asarray(at.layer) + 1)",
        "(jnp.asarray(at.layer) + 2)",
        (f"{MODELS}/test_families.py::test_scores_are_divided_by_the_number_of_their_layer",),
    ),
    "scale of alibi": Mutation("bias * scale if alibi.scaled else bias", "bias", _oracle("falcon/alibi")),
    "epsilon of norms": Mutation(
        "square + jnp.asarray(norm.eps, centred.dtype)",
        "square",
        _oracle("llama/longrope_beyond", "gpt2/plain"),
    ),
    "norms of single heads": Mutation(
        "over = (-2, -1) if spec.joint else -1", "over = -1", _oracle("olmo2/grouped")
    ),
    "sinks": Mutation(
        "total = total + jnp.exp(sink - top)", "total = total + jnp.exp(sink)", _oracle("gpt_oss/alternating")
    ),
    "scale of what modules add": Mutation(
        "return rounding.times(x, self.residual_scale)", "return x", _oracle("granite/multipliers")
    ),
    "logits before their scale": Mutation(
        'rounding.times(tap("unembed.hook_out", logits), self.logit_scale)',
        'tap("unembed.hook_out", rounding.times(logits, self.logit_scale))',
        _oracle("cohere/qk_norm_untied", "granite/multipliers"),
    ),
    "weights of experts": Mutation(
        "chosen = chosen / chosen.sum(-1, keepdims=True)", "pass", _oracle("mixtral/full")
    ),
    "clamp of experts": Mutation(
        "jnp.clip(linear, -limit, limit)", "jnp.minimum(linear, limit)", _oracle("gpt_oss/alternating")
    ),
    "scale of wkv writes": Mutation(
        "(t.write[..., None] * t.key)[..., None]",
        "t.key[..., None]",
        (f"{MODELS}/test_wkv.py::test_single_tokens_equal_the_formulas",),
    ),
    "gain of one plus": Mutation(
        "1 + _up(gain) if plus_one else",
        "_up(gain) if plus_one else",
        (f"{MODELS}/test_processing.py::test_logits_are_unchanged_in_float32[gemma/multi_query]",),
    ),
    "scale of adapters": Mutation(
        'math.sqrt(rank) if _flag(config, "use_rslora") else rank', "rank", (f"{MODELS}/test_adapters.py",)
    ),
    "exponent of mxfp4": Mutation(
        "np.float32(1), _BYTE[:255] - 127", "np.float32(1), _BYTE[:255] - 128", (f"{MODELS}/test_mxfp4.py",)
    ),
    "zero points of gptq": Mutation(
        "zeros.astype(np.float32) + less_one", "zeros.astype(np.float32)", (f"{MODELS}/test_quantised.py",)
    ),
    "order of awq": Mutation(
        "np.argsort([0, 2, 4, 6, 1, 3, 5, 7])", "np.arange(8)", (f"{MODELS}/test_quantised.py",)
    ),
    # Offsets.
    "sign of rotation": Mutation(
        "pairs[1] * cos + pairs[0] * sin", "pairs[1] * cos - pairs[0] * sin", _oracle("llama/longrope_beyond")
    ),
    "positions after padding": Mutation(
        "jnp.cumsum(jnp.asarray(mask, jnp.int32), -1) - 1",
        "jnp.cumsum(jnp.asarray(mask, jnp.int32), -1)",
        (f"{MODELS}/test_padding.py::test_padding_on_either_side_changes_nothing[gpt2/plain]",),
    ),
    "places of later tokens": Mutation(
        "(self.first + jnp.arange(length, dtype=jnp.int32))",
        "(jnp.arange(length, dtype=jnp.int32))",
        (f"{CORE}/test_generation.py", *SWEEPS),
    ),
    "token before the first": Mutation(
        "constant_values=-1), seen[:, -1])", "constant_values=0), seen[:, -1])", (f"{MODELS}/test_rwkv.py",)
    ),
    "attention through the state": Mutation(
        "own, later = (queries == j)",
        "own, later = (queries == j + 1)",
        (f"{MODELS}/test_wkv.py::test_attention_times_values_is_y",),
    ),
    "negative positions of rows": Mutation(
        "jnp.where(index < 0, index + count,", "jnp.where(index < 0, index + count - 1,", PADDED
    ),
    "start of a fused part": Mutation(
        "start = sum(lengths[: self.part])",
        "start = sum(lengths[: self.part - 1])",
        (f"{MODELS}/test_layout.py", f"{MODELS}/test_families.py"),
    ),
    # Slots and shares.
    "slot of a captured layer": Mutation(
        "At(np.asarray(slots) >= 0,", "At(np.asarray(slots) > 0,", (f"{CORE}/test_gradients.py",)
    ),
    "layers of cells": Mutation(
        "chosen.reshape(len(chosen), -1) % n_layers",
        "(chosen.reshape(len(chosen), -1) + 1) % n_layers",
        SWEEPS,
    ),
    "share of a sink": Mutation(
        "rest = 1 - pattern.astype(dtype)",
        "rest = 0 * pattern.astype(dtype)",
        (f"{CORE}/test_attention_weights.py",),
    ),
    "noise of a layer": Mutation(
        "key = jax.random.fold_in(key, site.layer)",
        "pass",
        (f"{CORE}/test_interventions.py", f"{INTERP}/test_causal_tracing.py"),
    ),
    "mask of edges": Mutation(
        "return jnp.where(jnp.broadcast_to(graph.exists, values.shape), values, 0)",
        "return values",
        (f"{INTERP}/test_eap.py",),
    ),
}
"""Name -> what is broken."""
