"""RWKV-6 in the names of its Hugging Face repositories."""

from collections.abc import Mapping
from typing import Any

from jmi_models.decoder.norms import Norm, Norms
from jmi_models.disk.layout import Key
from jmi_models.families.family import Family, Reader
from jmi_models.families.recurrent import fit_ranks, mix_keys
from jmi_models.families.usual import always, norm_keys
from jmi_models.rwkv.architecture import Rwkv

_LAYER = "rwkv.blocks.{i}."


def keys_of(layer: str, embed_norm: str, time: str, channel: str) -> dict[str, Key]:
    """Tensors of the layers, which both namings call alike but for the names of their modules."""
    time, channel = layer + time, layer + channel
    heads = {"R": "receptance", "K": "key", "V": "value", "G": "gate"}
    return {
        **norm_keys("embed.ln", layer.format(i=0) + embed_norm),
        **norm_keys("blocks.ln1", layer + "ln1"),
        **mix_keys("blocks.rwkv", {name: f"{time}time_maa_{name}" for name in "xwkvrg"}, "1 1 d_model"),
        "blocks.rwkv.mix_1": Key(time + "time_maa_w1", "d_model (n_mixes rank_mix)"),
        "blocks.rwkv.mix_2": Key(time + "time_maa_w2", "n_mixes rank_mix d_model"),
        "blocks.rwkv.w0": Key(time + "time_decay", "1 1 (n_heads d_head)"),
        "blocks.rwkv.w1": Key(time + "time_decay_w1", "d_model rank_decay"),
        "blocks.rwkv.w2": Key(time + "time_decay_w2", "rank_decay (n_heads d_head)"),
        "blocks.rwkv.u": Key(time + "time_faaaa", "n_heads d_head"),
        **{
            f"blocks.rwkv.W_{k}": Key(f"{time}{name}.weight", "(n_heads d_head) d_model")
            for k, name in heads.items()
        },
        "blocks.rwkv.W_O": Key(time + "output.weight", "d_model (n_heads d_head)"),
        "blocks.rwkv.ln_x.w": Key(time + "ln_x.weight", "(n_heads d_head)"),
        "blocks.rwkv.ln_x.b": Key(time + "ln_x.bias", "(n_heads d_head)"),
        **norm_keys("blocks.ln2", layer + "ln2"),
        **mix_keys("blocks.mlp", {name: f"{channel}time_maa_{name}" for name in "kr"}, "1 1 d_model"),
        "blocks.mlp.W_in": Key(channel + "key.weight", "d_mlp d_model"),
        "blocks.mlp.W_R": Key(channel + "receptance.weight", "d_gate d_model"),
        "blocks.mlp.W_out": Key(channel + "value.weight", "d_model d_mlp"),
    }


KEYS = {
    "embed.W_E": Key("rwkv.embeddings.weight", "d_vocab d_model"),
    **keys_of(_LAYER, "pre_ln", "attention.", "feed_forward."),
    **norm_keys("ln_final", "rwkv.ln_out"),
    "unembed.W_U": Key("head.weight", "d_vocab d_model"),
}


def from_config(config: Mapping[str, Any]) -> Rwkv:
    """Architecture of a Hugging Face Rwkv6Config, given as the dict in ``config.json``.

    Raises:
      ConfigError: a field that is missing, has a wrong type or asks for what is not implemented.
    """
    read = Reader(config)
    # The published configs say the width of a head under the name of the number of heads.
    d_model, d_head = read.count("hidden_size"), read.count("head_size", 64, old="num_attention_heads")
    read.divides("head_size", d_head, "hidden_size", d_model)
    read.only("attention_hidden_size", d_model)
    eps = read.eps("layer_norm_epsilon", 1e-5)
    # Sizes that shapes tell again, and a rescaling for float16 that leaves logits as they are.
    read.ignore("num_attention_heads", "rescale_every", "model_version", "context_length")
    wide = d_model >= 4096
    arch = Rwkv(
        version=6,
        n_layers=read.layers(),
        d_model=d_model,
        n_heads=d_model // d_head,
        d_head=d_head,
        d_mlp=read.count("intermediate_size", 7 * d_model // 2 // 32 * 32),
        d_vocab=read.count("vocab_size"),
        ranks=(("rank_mix", 64 if wide else 32), ("rank_decay", 128 if wide else 64)),
        norms=Norms(Norm("layer", eps, bias=True), embed=True),
        group_eps=eps * read.count("head_size_divisor", 8) ** 2,
        tied=read.flag("tie_word_embeddings", False),
    )
    read.finish()
    return arch


RWKV6 = Family(name="rwkv6", from_config=from_config, keys=always(KEYS), prefix="rwkv.", fit=fit_ranks)
