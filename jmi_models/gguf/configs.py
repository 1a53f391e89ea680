"""The metadata of a GGUF file as the Hugging Face config of the model that it was made from.

Fields are read under ``<architecture>.``; what llama.cpp writes into its code and not into its files
(activations, which layers have a window, whether weights of experts are normalised) is what the family takes
where its config is silent, or stands here.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jmi.errors import ConfigError
from jmi_models.gguf.header import Header
from jmi_models.gguf.tensors import values

Config = dict[str, Any]

USUAL: Mapping[str, str] = {
    "num_hidden_layers": "block_count",
    "max_position_embeddings": "context_length",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "rope_theta": "rope.freq_base",
}
"""Field of most configs -> key of the metadata."""

RMS = {"rms_norm_eps": "attention.layer_norm_rms_epsilon"}
LAYER_NORM = {"layer_norm_eps": "attention.layer_norm_epsilon"}
WIDTH = {"head_dim": "attention.key_length"}
EXPERTS = {"num_experts": "expert_count", "num_experts_per_tok": "expert_used_count"}
OF_EXPERTS = "expert_feed_forward_length"

GPT2: Mapping[str, str] = {
    "n_layer": "block_count",
    "n_positions": "context_length",
    "n_embd": "embedding_length",
    "n_inner": "feed_forward_length",
    "n_head": "attention.head_count",
    "layer_norm_epsilon": "attention.layer_norm_epsilon",
}
BLOOM: Mapping[str, str] = {
    "n_layer": "block_count",
    "seq_length": "context_length",
    "hidden_size": "embedding_length",
    "n_head": "attention.head_count",
    "n_inner": "feed_forward_length",
    "layer_norm_epsilon": "attention.layer_norm_epsilon",
}
FALCON: Mapping[str, str] = {
    "num_hidden_layers": "block_count",
    "max_position_embeddings": "context_length",
    "hidden_size": "embedding_length",
    "ffn_hidden_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_kv_heads": "attention.head_count_kv",
    "layer_norm_epsilon": "attention.layer_norm_epsilon",
    "rope_theta": "rope.freq_base",
}
RWKV6: Mapping[str, str] = {
    "num_hidden_layers": "block_count",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "head_size": "wkv.head_size",
    "layer_norm_epsilon": "attention.layer_norm_epsilon",
}
RWKV7: Mapping[str, str] = {
    "num_hidden_layers": "block_count",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "head_dim": "wkv.head_size",
    "norm_eps": "attention.layer_norm_epsilon",
}


_NEUTRAL = {
    # Told by the shapes of tensors, too.
    *("vocab_size", "attention.key_length", "attention.value_length", "rope.dimension_count"),
    *("time_mix_extra_dim", "time_decay_extra_dim", "attention.decay_lora_rank", "attention.iclr_lora_rank"),
    *("attention.value_residual_mix_lora_rank", "attention.gate_lora_rank"),
    # RWKV has neither a bound on its context nor heads of attention: both are there for llama.cpp.
    *("attention.head_count", "attention.head_count_kv", "context_length"),
    # How Falcon's projections lie, and that its experts are chosen by a softmax, as all are here.
    *("tensor_data_layout", "expert_gating_func"),
}
"""Keys that may have any value."""


class Reader:
    """The metadata of a model, by keys without the name of the architecture, and which tensors there are."""

    def __init__(self, header: Header):
        self.header, self.metadata, self.tensors = header, header.metadata, header.tensors
        self.arch = str(header.metadata.get("general.architecture"))
        self.read: set[str] = set()

    def get(self, key: str) -> Any:
        """A value; numbers in float32 as the shortest decimals that round to them, as a config has them.

        Raises:
          ConfigError: it is a list of different values, such as one for each layer.
        """
        self.read.add(key)
        value = self._width() if key == "feed_forward_length" else self.metadata.get(f"{self.arch}.{key}")
        if isinstance(value, np.ndarray):
            if len(set(value.tolist())) != 1:
                raise ConfigError(f"{self.arch}.{key} differs between layers, which is not implemented")
            value = value[0].item()
        return float(str(np.float32(value))) if isinstance(value, float) else value

    def _width(self) -> Any:
        """The width of the MLP: of the tensors, for some converters write four times that of the model."""
        down = self.tensors.get("blk.0.ffn_down.weight")
        return down.shape[-1] if down else self.metadata.get(f"{self.arch}.feed_forward_length")

    def fields(self, names: Mapping[str, str]) -> Config:
        """Fields of a config, those that the file has."""
        found = {field: self.get(key) for field, key in names.items()}
        return {field: value for field, value in found.items() if value is not None}

    def has(self, *names: str) -> bool:
        """Whether any of these tensors is there, in the first layer."""
        return any(f"blk.0.{name}" in self.tensors or name in self.tensors for name in names)

    def ignore(self, *keys: str) -> None:
        """Keys that change nothing in this family, or that the tensors tell better."""
        self.read.update(keys)

    def unread(self) -> list[str]:
        """What the file says of its architecture that nobody asked for."""
        lead = f"{self.arch}."
        said = {key.removeprefix(lead) for key in self.metadata if key.startswith(lead)}
        return sorted(lead + key for key in said - self.read - _NEUTRAL)

    @property
    def heads(self) -> int:
        """The number of heads, for what is divided by it."""
        return _positive("attention.head_count", self.get("attention.head_count"))

    @property
    def d_head(self) -> int:
        """The width of a head."""
        width = self.get("attention.key_length")
        return _positive("attention.key_length", self.d_model // self.heads if width is None else width)

    @property
    def d_model(self) -> int:
        """The width of the model."""
        return _positive("embedding_length", self.get("embedding_length"))


def _positive(key: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{key} must be a positive integer, got {value!r}")
    return value


def common(read: Reader) -> Config:
    """What a file says of every model: vocabulary and whether the head is the embedding."""
    embedding = read.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise ConfigError("it has no tensor token_embd.weight, the embedding; is it a language model?")
    return {"vocab_size": embedding.shape[0], "tie_word_embeddings": not read.has("output.weight")}


def rotary(read: Reader) -> Config:
    """``rope_scaling`` and the share of a head that is turned."""
    found: Config = {}
    turned = read.get("rope.dimension_count")
    if turned is not None and turned != read.d_head:
        found["partial_rotary_factor"] = turned / read.d_head
    return found | _scaling(read)


def _scaling(read: Reader) -> Config:
    kind, original = read.get("rope.scaling.type"), read.get("rope.scaling.original_context_length")
    factors = [_factors(read, f"rope_{name}.weight") for name in ("factors_short", "factors_long", "freqs")]
    short, long, always = factors
    longest = read.get("context_length")
    if always is not None:
        # A factor for each frequency, whatever the length of the text (Llama 3).
        named = {"rope_type": "longrope", "short_factor": always, "long_factor": always}
        return {"rope_scaling": {**named, "attention_factor": 1.0}, **_original(longest)}
    if short is not None and long is not None:
        sharpen = read.get("rope.scaling.attn_factor")
        scaling = {"rope_type": "longrope", "short_factor": short, "long_factor": long}
        scaling |= {} if sharpen is None else {"attention_factor": sharpen}
        return {"rope_scaling": scaling, **_original(original or longest)}
    if kind in (None, "none"):
        return {}
    scaling = {"rope_type": kind, "factor": read.get("rope.scaling.factor")}
    if kind == "yarn":
        names = {"attention_factor": "attn_factor", "beta_fast": "beta_fast", "beta_slow": "beta_slow"}
        scaling |= read.fields({field: f"rope.scaling.yarn_{key}" for field, key in names.items()})
    return {"rope_scaling": scaling, **_original(original)}


def _original(length: int | None) -> Config:
    return {} if length is None else {"original_max_position_embeddings": length}


def _factors(read: Reader, name: str) -> list[float] | None:
    return [float(str(x)) for x in values(read.header, name)] if name in read.tensors else None


def mixture(read: Reader, normalise: bool) -> Config:
    """Fields of a Qwen-like mixture of experts."""
    names = {**EXPERTS, "moe_intermediate_size": OF_EXPERTS}
    return {**read.fields(names), "norm_topk_prob": normalise}


def biases(read: Reader) -> Config:
    """Whether attention and MLP have biases, in Llama's names."""
    return {"attention_bias": read.has("attn_q.bias", "attn_qkv.bias"), "mlp_bias": read.has("ffn_up.bias")}


def query_scalar(read: Reader, layers_of_27b: int) -> Config:
    """Of Gemma: scores are divided by the root of this; in its model of 27B not by that of a head's width."""
    large = read.get("block_count") == layers_of_27b
    return {"query_pre_attn_scalar": read.d_model // read.heads if large else read.d_head}


Extra = Callable[[Reader], Config]
"""What a family's config has beyond the fields that are renamed."""
