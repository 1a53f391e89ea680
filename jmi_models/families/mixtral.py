"""Mixtral: Mistral with eight experts in place of the MLP."""

from collections.abc import Mapping
from typing import Any

from jmi_models.decoder.experts import Experts
from jmi_models.decoder.norms import Norms
from jmi_models.decoder.transformer import Transformer
from jmi_models.disk.layout import Key
from jmi_models.families.family import Family, Reader
from jmi_models.families.usual import KEYS, LAYER, always, one_window, read_usual, rms

_MIXTURE = LAYER + "block_sparse_moe."


def from_config(config: Mapping[str, Any]) -> Transformer:
    """Architecture of a Hugging Face MixtralConfig, given as the dict in ``config.json``.

    Raises:
      ConfigError: a field that is missing, has a wrong type or asks for what is not implemented.
    """
    read = Reader(config)
    n_experts = read.count("num_local_experts", 8)
    experts = Experts(
        n_experts=n_experts,
        top_k=read.chosen("num_experts_per_tok", 2, n_experts),
        d_expert=read.count("intermediate_size"),
        normalise=True,
    )
    arch = read_usual(
        read,
        "mixtral",
        Norms(rms(read, 1e-5)),
        n_ctx=131072,
        n_kv_heads=8,
        theta=1e6,
        attn={"windows": one_window(read, None)},
        experts=experts,
    )
    read.finish()
    return arch


MIXTRAL = Family(
    name="mixtral",
    from_config=from_config,
    keys=always(
        {
            **KEYS,
            "blocks.mlp.W_router": Key(_MIXTURE + "gate.weight", "n_experts d_model"),
            "blocks.mlp.W_gate": Key(_MIXTURE + "experts.{e}.w1.weight", "d_expert d_model"),
            "blocks.mlp.W_in": Key(_MIXTURE + "experts.{e}.w3.weight", "d_expert d_model"),
            "blocks.mlp.W_out": Key(_MIXTURE + "experts.{e}.w2.weight", "d_model d_expert"),
        }
    ),
)
