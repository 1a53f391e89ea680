"""GPT-J: parallel blocks that share a norm, interleaved partial rotary, a head with a bias."""

from collections.abc import Mapping
from typing import Any

from jmi.errors import ConfigError
from jmi_models.families.family import Family, Reader
from jmi_models.families.usual import always, attention_keys, mlp_keys
from jmi_models.layout import Key
from jmi_models.norms import Norm
from jmi_models.rope import Rope
from jmi_models.transformer import Transformer

_LAYER = "transformer.h.{i}."
KEYS = {
    "embed.W_E": Key("transformer.wte.weight", "d_vocab d_model"),
    "blocks.ln1.w": Key(_LAYER + "ln_1.weight", "d_model"),
    "blocks.ln1.b": Key(_LAYER + "ln_1.bias", "d_model"),
    **attention_keys(_LAYER + "attn.", "q_proj k_proj v_proj out_proj"),
    **mlp_keys(_LAYER + "mlp.", "fc_in fc_out"),
    "ln_final.w": Key("transformer.ln_f.weight", "d_model"),
    "ln_final.b": Key("transformer.ln_f.bias", "d_model"),
    "unembed.W_U": Key("lm_head.weight", "d_vocab d_model"),
    "unembed.b_U": Key("lm_head.bias", "d_vocab"),
}


def from_config(config: Mapping[str, Any]) -> Transformer:
    """Architecture of a Hugging Face GPTJConfig, given as the dict in ``config.json``.

    Raises:
      ConfigError: a field that is missing, has a wrong type or asks for what is not implemented.
    """
    read = Reader(config)
    d_model, n_heads = read.count("n_embd"), read.count("n_head")
    read.divides("n_head", n_heads, "n_embd", d_model)
    d_head, turned = d_model // n_heads, read.count("rotary_dim", 64)
    if turned % 2 or turned > d_head:
        raise ConfigError(f"config.json: rotary_dim={turned} must be even and at most {d_head}")
    # Sizes that older configs repeat, and flags without effect on this family.
    read.ignore("n_ctx", "rotary", "scale_attn_weights")
    arch = Transformer(
        family="gptj",
        n_layers=read.count("n_layer"),
        d_model=d_model,
        n_heads=n_heads,
        n_kv_heads=n_heads,
        d_head=d_head,
        d_mlp=read.count("n_inner", 4 * d_model),
        d_vocab=read.count("vocab_size"),
        n_ctx=read.count("n_positions", 2048),
        act_fn=read.activation("activation_function", "gelu_new"),
        norm=Norm("layer", read.number("layer_norm_epsilon", 1e-5), bias=True),
        parallel=True,
        shared_norm=True,
        ropes=(Rope(1e4, turned),),
        rope_interleaved=True,
        attn_scale=d_head**-0.5,
        mlp_bias=True,
        unembed_bias=True,
        gated=False,
        tied=read.flag("tie_word_embeddings", False),
    )
    read.finish()
    return arch


GPTJ = Family(
    name="gptj",
    from_config=from_config,
    keys=always(KEYS),
    prefix="transformer.",
    ignored=(r"transformer\.h\.\d+\.attn\.(masked_)?bias",),
)
