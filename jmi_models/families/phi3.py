"""Phi 3 and 3.5: Llama with fused projections, partial rotary and LongRoPE."""

from collections.abc import Mapping
from typing import Any

from jmi_models.decoder.norms import Norms
from jmi_models.decoder.transformer import Transformer
from jmi_models.disk.layout import Fused, Key
from jmi_models.families.family import Family, Reader
from jmi_models.families.usual import (
    EMBEDDINGS,
    LAYER,
    PRE_NORMS,
    always,
    fused_keys,
    one_window,
    read_usual,
    rms,
)

_GATE_AND_LINEAR = LAYER + "mlp.gate_up_proj.weight"
KEYS = {
    **EMBEDDINGS,
    **PRE_NORMS,
    **fused_keys(LAYER + "self_attn.qkv_proj", LAYER + "self_attn.o_proj", groups=""),
    "blocks.mlp.W_gate": Key(_GATE_AND_LINEAR, "[d_mlp] d_model", Fused("", ("d_mlp", "d_mlp"), 0)),
    "blocks.mlp.W_in": Key(_GATE_AND_LINEAR, "[d_mlp] d_model", Fused("", ("d_mlp", "d_mlp"), 1)),
    "blocks.mlp.W_out": Key(LAYER + "mlp.down_proj.weight", "d_model d_mlp"),
}


def from_config(config: Mapping[str, Any]) -> Transformer:
    """Architecture of a Hugging Face Phi3Config, given as the dict in ``config.json``.

    Raises:
      ConfigError: a field that is missing, has a wrong type or asks for what is not implemented.
    """
    name = "original_max_position_embeddings"
    read = Reader({**config, name: 4096} if config.get(name) is None else config)
    attn = {"windows": one_window(read, None)}
    arch = read_usual(read, "phi3", Norms(rms(read, 1e-5)), n_ctx=4096, partial=1.0, attn=attn)
    read.finish()
    return arch


PHI3 = Family(name="phi3", from_config=from_config, keys=always(KEYS))
