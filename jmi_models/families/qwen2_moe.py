"""Qwen 1.5 and 2 mixtures: Qwen 2 with many small experts and one that every token is given."""

from collections.abc import Mapping
from typing import Any

from jmi.errors import ConfigError
from jmi_models.decoder.experts import Experts
from jmi_models.decoder.norms import Norms
from jmi_models.decoder.transformer import Transformer
from jmi_models.disk import words
from jmi_models.disk.layout import Key
from jmi_models.families.family import Family, Reader
from jmi_models.families.usual import KEYS, LAYER, MLP, by_kind, mlp_keys, read_usual, rms, windows

EXPERT_KEYS = {
    "blocks.mlp.W_router": Key(LAYER + "mlp.gate.weight", "n_experts d_model"),
    "blocks.mlp.W_gate": Key(LAYER + "mlp.experts.{e}.gate_proj.weight", "d_expert d_model"),
    "blocks.mlp.W_in": Key(LAYER + "mlp.experts.{e}.up_proj.weight", "d_expert d_model"),
    "blocks.mlp.W_out": Key(LAYER + "mlp.experts.{e}.down_proj.weight", "d_model d_expert"),
}
_SHARED = LAYER + "mlp.shared_expert"


def from_config(config: Mapping[str, Any]) -> Transformer:
    """Architecture of a Hugging Face Qwen2MoeConfig, given as the dict in ``config.json``.

    Raises:
      ConfigError: a field that is missing, has a wrong type or asks for what is not implemented.
    """
    read = Reader(config)
    n_experts = read.count("num_experts", 60)
    experts = Experts(
        n_experts=n_experts,
        top_k=read.chosen("num_experts_per_tok", 4, n_experts),
        d_expert=read.count("moe_intermediate_size", 1408),
        normalise=read.flag("norm_topk_prob", False),
        d_shared=read.count("shared_expert_intermediate_size", 5632),
        dense_layers=dense_layers(read),
    )
    arch = read_usual(
        read,
        "qwen2_moe",
        Norms(rms(read)),
        n_ctx=32768,
        n_kv_heads=16,
        attn={"windows": _windows(read), "qkv_bias": read.flag("qkv_bias", True)},
        experts=experts,
    )
    read.finish()
    return arch


def dense_layers(read: Reader) -> tuple[int, ...]:
    """The layers with an MLP and no mixture: those listed, and all but each ``decoder_sparse_step``-th."""
    listed, step = read.config.get("mlp_only_layers"), read.count("decoder_sparse_step", 1)
    read.ignore("mlp_only_layers")
    given = [] if listed is None else listed
    if not isinstance(given, list) or not all(type(layer) is int for layer in given):
        raise ConfigError(
            f"config.json: 'mlp_only_layers' must be a list of layers, got {words.value(listed)}"
        )
    layers = tuple(i for i in range(read.layers()) if i in given or (i + 1) % step)
    if len(layers) == read.layers():
        raise ConfigError(
            f"config.json: mlp_only_layers={words.value(listed)}, decoder_sparse_step={step}: "
            "no layer is left to be a mixture"
        )
    return layers


def _windows(read: Reader) -> tuple[int | None, ...]:
    last = read.index("max_window_layers", 28)
    read.ignore("sliding_window", "layer_types")
    if not read.flag("use_sliding_window", False):
        return ()
    return windows(read, 4096, lambda layer: layer % 2 == 0 and layer < last, optional=False)


QWEN2_MOE = Family(
    name="qwen2_moe",
    from_config=from_config,
    keys=by_kind(
        {
            **KEYS,
            **EXPERT_KEYS,
            "blocks.mlp.shared.W_sigmoid": Key(f"{_SHARED}_gate.weight", "one d_model"),
            **mlp_keys(f"{_SHARED}.", "gate_proj up_proj down_proj", "blocks.mlp.shared", "d_shared"),
        },
        MLP,
    ),
)
