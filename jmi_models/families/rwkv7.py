"""RWKV-7 in the names of the fla library, which its Hugging Face repositories use."""

from collections.abc import Mapping
from typing import Any

from jmi_models.decoder.norms import Norm, Norms
from jmi_models.disk.layout import Key
from jmi_models.families.family import Family, Reader
from jmi_models.families.recurrent import fit_ranks, mix_keys
from jmi_models.families.usual import LAYER, always, norm_keys
from jmi_models.rwkv.architecture import Rwkv
from jmi_models.rwkv.rwkv7 import RANKS

_ATTN = LAYER + "attn."


def _low_rank(letter: str, rank: str) -> dict[str, Key]:
    # The first layer takes its values as they are: it mixes no others in, and stores nothing for it.
    first = 1 if letter == "v" else 0
    path, name = f"blocks.rwkv.{letter}", f"{_ATTN}{letter}_lora.lora."
    return {
        f"{path}0": Key(f"{name}2.bias", "(n_heads d_head)", first=first),
        f"{path}1": Key(f"{name}0.weight", f"{rank} d_model", first=first),
        f"{path}2": Key(f"{name}2.weight", f"(n_heads d_head) {rank}", first=first),
    }


KEYS = {
    "embed.W_E": Key("model.embeddings.weight", "d_vocab d_model"),
    **norm_keys("embed.ln", LAYER.format(i=0) + "pre_norm"),
    **norm_keys("blocks.ln1", LAYER + "attn_norm"),
    **mix_keys("blocks.rwkv", {name: f"{_ATTN}x_{name}" for name in "rwkvag"}, "1 1 d_model"),
    **{
        f"blocks.rwkv.W_{name.upper()}": Key(f"{_ATTN}{name}_proj.weight", "(n_heads d_head) d_model")
        for name in "rkv"
    },
    "blocks.rwkv.W_O": Key(_ATTN + "o_proj.weight", "d_model (n_heads d_head)"),
    **{path: key for letter, rank in RANKS.items() for path, key in _low_rank(letter, rank).items()},
    "blocks.rwkv.k_k": Key(_ATTN + "k_k", "(n_heads d_head)"),
    "blocks.rwkv.k_a": Key(_ATTN + "k_a", "(n_heads d_head)"),
    "blocks.rwkv.r_k": Key(_ATTN + "r_k", "n_heads d_head"),
    "blocks.rwkv.ln_x.w": Key(_ATTN + "g_norm.weight", "(n_heads d_head)"),
    "blocks.rwkv.ln_x.b": Key(_ATTN + "g_norm.bias", "(n_heads d_head)"),
    **norm_keys("blocks.ln2", LAYER + "ffn_norm"),
    **mix_keys("blocks.mlp", {"k": LAYER + "ffn.x_k"}, "d_model"),
    "blocks.mlp.W_in": Key(LAYER + "ffn.key.weight", "d_mlp d_model"),
    "blocks.mlp.W_out": Key(LAYER + "ffn.value.weight", "d_model d_mlp"),
    **norm_keys("ln_final", "model.norm"),
    "unembed.W_U": Key("lm_head.weight", "d_vocab d_model"),
}


def from_config(config: Mapping[str, Any]) -> Rwkv:
    """Architecture of an fla RWKV7Config, given as the dict in ``config.json``.

    The defaults of ranks the config leaves out are those of fla.

    Raises:
      ConfigError: a field that is missing, has a wrong type or asks for what is not implemented.
    """
    read = Reader(config)
    d_model, d_head = read.count("hidden_size"), read.count("head_dim", 64)
    read.divides("head_dim", d_head, "hidden_size", d_model)
    d_mlp = 32 * -(-int(d_model * read.positive("hidden_ratio", 4.0)) // 32)
    eps = read.eps("norm_eps", 1e-5)
    read.only("hidden_act", "sqrelu")
    read.only("norm_bias", True)
    read.only("norm_first", True)
    # Other names of the same sizes, and how fla orders the same computation.
    read.ignore(
        "num_heads", "value_dim", "attn_mode", "fuse_norm", "fuse_cross_entropy", "max_position_embeddings"
    )
    read.ignore("fuse_linear_cross_entropy", "use_l2warp", "attn", "expand_ratio", "hidden_size_scale")

    def rank(name: str, factor: float, size: float) -> int:
        usual = max(32, 32 * round(factor * d_model**0.5 * size / 32))
        return read.count(f"{name}_low_rank_dim", usual)

    wide = d_head / 64
    arch = Rwkv(
        version=7,
        n_layers=read.layers(),
        d_model=d_model,
        n_heads=d_model // d_head,
        d_head=d_head,
        d_mlp=read.count("intermediate_size", d_mlp),
        d_vocab=read.count("vocab_size"),
        ranks=(
            ("rank_decay", rank("decay", 2.5, wide)),
            ("rank_a", rank("a", 2.5, wide)),
            ("rank_v", rank("v", 1.7, wide)),
            ("rank_gate", rank("gate", 5.0, 1.0)),
        ),
        norms=Norms(Norm("layer", eps, bias=True), embed=True),
        group_eps=d_head * eps,
        tied=read.flag("tie_word_embeddings", False),
    )
    read.finish()
    return arch


RWKV7 = Family(name="rwkv7", from_config=from_config, keys=always(KEYS), fit=fit_ranks)
