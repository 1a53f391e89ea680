"""llama.cpp's architectures that are families of jmi: their configs, names and turned tensors, as data."""

import dataclasses
from collections.abc import Callable, Container, Mapping

from jmi_models.gguf import configs, names
from jmi_models.gguf.configs import (
    BLOOM,
    EXPERTS,
    FALCON,
    GPT2,
    LAYER_NORM,
    OF_EXPERTS,
    RMS,
    USUAL,
    WIDTH,
    Config,
    Reader,
    biases,
    mixture,
    query_scalar,
    rotary,
)
from jmi_models.gguf.names import Keys, decoder_keys, fused_gate_keys
from jmi_models.gguf.tensors import AS_IS, Turned


@dataclasses.dataclass(frozen=True)
class Converted:
    """What llama.cpp makes of a family.

    Attributes:
      family: its Hugging Face ``model_type``.
      fields: field of its config -> key of the metadata.
      extra: what its config has beyond them.
      keys: names of the tensors there are -> key map.
      turned: what its tensors are turned into.
    """

    family: str
    fields: Mapping[str, str]
    extra: Callable[[Reader], Config] = lambda read: {}
    keys: Callable[[Container[str]], Keys] = decoder_keys
    turned: Turned = AS_IS


def _llama(read: Reader) -> Config:
    return {**rotary(read), **biases(read)}


def _mixtral(read: Reader) -> Config:
    width = read.get(OF_EXPERTS) or read.get("feed_forward_length")
    fields = {"num_local_experts": "expert_count", "num_experts_per_tok": "expert_used_count"}
    return {**rotary(read), **read.fields(fields), "intermediate_size": width, "sliding_window": None}


def _attention(read: Reader) -> Config:
    return {**rotary(read), "attention_bias": biases(read)["attention_bias"]}


def _qwen2_moe(read: Reader) -> Config:
    shared = read.fields({"shared_expert_intermediate_size": "expert_shared_feed_forward_length"})
    bias = biases(read)["attention_bias"]
    return {**rotary(read), **mixture(read, normalise=False), **shared, "qkv_bias": bias}


def _gemma2(read: Reader) -> Config:
    names = {
        "attn_logit_softcapping": "attn_logit_softcapping",
        "final_logit_softcapping": "final_logit_softcapping",
        "sliding_window": "attention.sliding_window",
    }
    return {**_attention(read), **read.fields(names), **query_scalar(read, 46)}


def _gemma3(read: Reader) -> Config:
    local = read.get("rope.freq_base_swa")
    every = read.get("attention.sliding_window_pattern") or 6
    window = read.get("attention.sliding_window")
    return {
        **_attention(read),
        **query_scalar(read, 62),
        "final_logit_softcapping": read.get("final_logit_softcapping"),
        "rope_local_base_freq": 1e4 if local is None else local,
        "sliding_window": window,
        "sliding_window_pattern": every if window else 1,  # without a window every layer sees all
    }


def _phi3(read: Reader) -> Config:
    return {**rotary(read), "sliding_window": read.get("attention.sliding_window") or None}


def _starcoder2(read: Reader) -> Config:
    window = read.get("attention.sliding_window") or None
    return {**rotary(read), "use_bias": read.has("attn_q.bias", "attn_qkv.bias"), "sliding_window": window}


def _olmo(read: Reader) -> Config:
    read.ignore("attention.layer_norm_epsilon")  # always 1e-5
    return _attention(read)


def _stablelm(read: Reader) -> Config:
    # The converter writes a default of its own where a config is silent: the tensors know.
    read.ignore("use_parallel_residual")
    return {
        **rotary(read),
        "use_parallel_residual": not read.has("ffn_norm.weight"),
        "qk_layernorm": read.has("attn_q_norm.weight"),
        "use_qkv_bias": read.has("attn_q.bias", "attn_qkv.bias"),
        "partial_rotary_factor": rotary(read).get("partial_rotary_factor", 1.0),
    }


def _gpt_neox(read: Reader) -> Config:
    share = rotary(read).get("partial_rotary_factor", 1.0)
    parallel = read.get("use_parallel_residual")
    return {
        **rotary(read),
        "partial_rotary_factor": share,
        "use_parallel_residual": True if parallel is None else parallel,
        "attention_bias": read.has("attn_qkv.bias"),
    }


def _falcon(read: Reader) -> Config:
    n_kv = read.get("attention.head_count_kv")
    return {
        **rotary(read),
        "multi_query": n_kv == 1,
        "new_decoder_architecture": n_kv not in (None, 1),
        "num_ln_in_parallel_attn": 2 if read.has("attn_norm_2.weight") else 1,
        "bias": read.has("attn_qkv.bias"),
        "alibi": False,
    }


def _falcon_keys(tensors: Container[str]) -> Keys:
    # With two norms, the second in name is that of attention.
    two = "blk.0.attn_norm_2.weight" in tensors
    return decoder_keys(tensors, ln1="attn_norm_2", ln2="attn_norm") if two else decoder_keys(tensors)


def _cohere(read: Reader) -> Config:
    fields = read.fields({"logit_scale": "logit_scale", **LAYER_NORM})
    return {**rotary(read), **fields, "use_qk_norm": read.has("attn_q_norm.weight")}


def _cohere2(read: Reader) -> Config:
    fields = {"logit_scale": "logit_scale", "sliding_window": "attention.sliding_window", **LAYER_NORM}
    return {**read.fields(fields), **rotary(read), "sliding_window_pattern": 4}


def _granite(read: Reader) -> Config:
    names = {
        "attention_multiplier": "attention.scale",
        "embedding_multiplier": "embedding_scale",
        "residual_multiplier": "residual_scale",
        "logits_scaling": "logit_scale",
    }
    return {**_llama(read), **read.fields(names)}


def _gpt_oss(read: Reader) -> Config:
    config = rotary(read)
    if scaling := config.get("rope_scaling"):
        scaling |= {"truncate": False}
    fields = {
        "num_local_experts": "expert_count",
        "num_experts_per_tok": "expert_used_count",
        "intermediate_size": OF_EXPERTS,
        "sliding_window": "attention.sliding_window",
    }
    return {**config, **read.fields(fields), "attention_bias": read.has("attn_q.bias")}


def _smollm3(read: Reader) -> Config:
    return {**_llama(read), "no_rope_layer_interval": 4}


_HALVES, _PLUS_ONE = Turned(halves=True), Turned(plus_one=True)
_ROPED = {**USUAL, **RMS, **WIDTH}

ARCHITECTURES: Mapping[str, Converted] = {
    "llama": Converted("llama", _ROPED, _llama, turned=_HALVES),
    "qwen2": Converted("qwen2", {**USUAL, **RMS}, rotary),
    "qwen2moe": Converted("qwen2_moe", {**USUAL, **RMS}, _qwen2_moe),
    "qwen3": Converted("qwen3", _ROPED, _attention),
    "qwen3moe": Converted(
        "qwen3_moe", _ROPED, lambda read: {**_attention(read), **mixture(read, normalise=True)}
    ),
    "gemma": Converted("gemma", _ROPED, _attention, turned=_PLUS_ONE),
    "gemma2": Converted("gemma2", _ROPED, _gemma2, turned=_PLUS_ONE),
    "gemma3": Converted("gemma3_text", _ROPED, _gemma3, turned=_PLUS_ONE),
    "phi2": Converted("phi", {**USUAL, **LAYER_NORM}, rotary),
    "phi3": Converted(
        "phi3", {**USUAL, **RMS}, _phi3, lambda tensors: decoder_keys(tensors) | fused_gate_keys()
    ),
    "starcoder2": Converted(
        "starcoder2", {**USUAL, "norm_epsilon": "attention.layer_norm_epsilon"}, _starcoder2
    ),
    "gpt2": Converted("gpt2", GPT2),
    "gptneox": Converted("gpt_neox", {**USUAL, **LAYER_NORM}, _gpt_neox),
    "bloom": Converted("bloom", BLOOM),
    "falcon": Converted("falcon", FALCON, _falcon, _falcon_keys),
    "olmo": Converted(
        "olmo",
        {**USUAL, "clip_qkv": "attention.clamp_kqv"},
        _olmo,
        turned=_HALVES,
    ),
    "olmo2": Converted("olmo2", {**USUAL, **RMS}, _attention, lambda tensors: decoder_keys(tensors, "joint")),
    "olmoe": Converted(
        "olmoe",
        {**USUAL, **RMS, **EXPERTS, "clip_qkv": "attention.clamp_kqv"},
        lambda read: {**_attention(read), "norm_topk_prob": False},
        lambda tensors: decoder_keys(tensors, "joint"),
    ),
    "stablelm": Converted(
        "stablelm", {**USUAL, **LAYER_NORM}, _stablelm, lambda tensors: decoder_keys(tensors, "own")
    ),
    "command-r": Converted("cohere", USUAL, _cohere, lambda tensors: decoder_keys(tensors, "own")),
    "cohere2": Converted("cohere2", USUAL, _cohere2),
    "granite": Converted("granite", {**USUAL, **RMS}, _granite, turned=_HALVES),
    "smollm3": Converted("smollm3", _ROPED, _smollm3, turned=_HALVES),
    "gpt-oss": Converted(
        "gpt_oss", _ROPED, _gpt_oss, lambda tensors: decoder_keys(tensors, ln2="post_attention_norm")
    ),
    "rwkv6": Converted("rwkv6", configs.RWKV6, keys=lambda tensors: dict(names.RWKV6)),
    "rwkv7": Converted("rwkv7", configs.RWKV7, keys=lambda tensors: dict(names.RWKV7)),
}
"""Architecture of llama.cpp -> the family that it is."""

MIXTRAL = Converted("mixtral", {**_ROPED}, _mixtral, turned=_HALVES)
"""A ``llama`` with experts."""
