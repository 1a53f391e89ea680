"""What llama.cpp calls each tensor: parameter path -> `Key`, in the names and axes of GGUF files.

Which of several forms a file has, only its tensors tell: queries, keys and values may be one tensor, so may
gate and linear branch, and experts are stacked, or in files from before April 2024 stored one by one.
"""

from collections.abc import Container

from jmi_models.disk.layout import Fused, Key
from jmi_models.rwkv.rwkv7 import RANKS

Keys = dict[str, Key]
LAYER = "blk.{i}."


def _norm(path: str, name: str) -> Keys:
    return {f"{path}.w": Key(f"{name}.weight", "d_model"), f"{path}.b": Key(f"{name}.bias", "d_model")}


def _linear(path: str, letters: str, name: str, layout: str, bias: str) -> Keys:
    """A matrix and its bias; ``letters`` are those after ``W_`` and ``b_``."""
    return {
        f"{path}.W_{letters}": Key(f"{LAYER}{name}.weight", layout),
        f"{path}.b_{letters}": Key(f"{LAYER}{name}.bias", bias),
    }


HEAD_NORMS = {"each": "d_head", "own": "n_heads d_head", "joint": "(n_heads d_head)"}
"""How the gain of the norm of queries and keys lies: one for all heads, each its own, or of all together."""


def decoder_keys(
    tensors: Container[str], head_norm: str = "each", *, ln1: str = "attn_norm", ln2: str = "ffn_norm"
) -> Keys:
    """Keys of a transformer.

    Args:
      tensors: names of those in the file, which tell the form.
      head_norm: as in `HEAD_NORMS`.
      ln1, ln2: what the norms before attention and MLP are called.
    """
    gain = HEAD_NORMS[head_norm]
    return {
        "embed.W_E": Key("token_embd.weight", "d_vocab d_model"),
        **_norm("embed.ln", "token_embd_norm"),
        "pos_embed.W_pos": Key("position_embd.weight", "n_positions d_model"),
        **_norm("blocks.ln1", LAYER + ln1),
        **_norm("blocks.ln1_post", LAYER + "post_attention_norm"),
        **_norm("blocks.ln2", LAYER + ln2),
        **_norm("blocks.ln2_post", LAYER + "post_ffw_norm"),
        **(_fused_attention() if "blk.0.attn_qkv.weight" in tensors else _attention()),
        **_linear("blocks.attn", "O", "attn_output", "d_model (n_heads d_head)", "d_model"),
        "blocks.attn.q_norm.w": Key(LAYER + "attn_q_norm.weight", gain),
        "blocks.attn.k_norm.w": Key(LAYER + "attn_k_norm.weight", gain.replace("n_heads", "n_kv_heads")),
        "blocks.attn.sinks": Key(LAYER + "attn_sinks.weight", "n_heads"),
        **(_experts(tensors) if "blk.0.ffn_gate_inp.weight" in tensors else _mlp()),
        **_norm("ln_final", "output_norm"),
        "unembed.W_U": Key("output.weight", "d_vocab d_model"),
        "unembed.b_U": Key("output.bias", "d_vocab"),
    }


def _attention() -> Keys:
    return {
        path: key
        for letter, heads in {"Q": "n_heads", "K": "n_kv_heads", "V": "n_kv_heads"}.items()
        for path, key in _linear(
            "blocks.attn", letter, f"attn_{letter.lower()}", f"({heads} d_head) d_model", f"({heads} d_head)"
        ).items()
    }


def _fused_attention() -> Keys:
    """Queries, then keys, then values, whatever the order of the original was."""
    parts, keys = ("n_heads d_head", "n_kv_heads d_head", "n_kv_heads d_head"), Keys()
    for i, (letter, part) in enumerate(zip("QKV", parts, strict=True)):
        keys[f"blocks.attn.W_{letter}"] = Key(
            LAYER + "attn_qkv.weight", f"[{part}] d_model", Fused("", parts, i)
        )
        keys[f"blocks.attn.b_{letter}"] = Key(LAYER + "attn_qkv.bias", f"[{part}]", Fused("", parts, i))
    return keys


def _mlp() -> Keys:
    out = _linear("blocks.mlp", "out", "ffn_down", "d_model d_mlp", "d_model")
    up = _linear("blocks.mlp", "in", "ffn_up", "d_mlp d_model", "d_mlp")
    gate = _linear("blocks.mlp", "gate", "ffn_gate", "d_mlp d_model", "d_mlp")
    return {**gate, **up, **out}


def fused_gate_keys() -> Keys:
    """Gate and linear branch in one tensor (Phi 3), which is called like the latter alone."""
    name, parts = LAYER + "ffn_up.weight", ("d_mlp", "d_mlp")
    return {
        f"blocks.mlp.W_{letters}": Key(name, "[d_mlp] d_model", Fused("", parts, i))
        for i, letters in enumerate(("gate", "in"))
    }


def _experts(tensors: Container[str]) -> Keys:
    """A mixture, and the expert that every token is given."""
    keys = _linear("blocks.mlp", "router", "ffn_gate_inp", "n_experts d_model", "n_experts")
    stacked = "blk.0.ffn_gate.0.weight" not in tensors
    axis, end = ("n_experts ", "_exps") if stacked else ("", ".{e}")
    for letters, name, inner in (("gate", "gate", "d_expert d_model"), ("in", "up", "d_expert d_model")):
        keys |= _linear("blocks.mlp", letters, f"ffn_{name}{end}", axis + inner, "n_experts d_expert")
    keys |= _linear("blocks.mlp", "out", f"ffn_down{end}", axis + "d_model d_expert", "n_experts d_model")
    keys["blocks.mlp.shared.W_sigmoid"] = Key(LAYER + "ffn_gate_inp_shexp.weight", "one d_model")
    for letters, name, layout in (
        ("gate", "gate", "d_shared d_model"),
        ("in", "up", "d_shared d_model"),
        ("out", "down", "d_model d_shared"),
    ):
        keys[f"blocks.mlp.shared.W_{letters}"] = Key(f"{LAYER}ffn_{name}_shexp.weight", layout)
    return keys


def _mixes(letters: str) -> Keys:
    """Token-shift mixes, one after the other in one tensor, in the order of ``letters``."""
    name, parts = LAYER + "time_mix_lerp_fused.weight", ("d_model",) * len(letters)
    return {
        f"blocks.rwkv.mix_{letter}": Key(name, "[d_model]", Fused("", parts, i))
        for i, letter in enumerate(letters)
    }


def _recurrent_keys() -> Keys:
    """What RWKV-6 and RWKV-7 share."""
    projections = {"R": "receptance", "K": "key", "V": "value"}
    return {
        "embed.W_E": Key("token_embd.weight", "d_vocab d_model"),
        **_norm("embed.ln", "token_embd_norm"),
        **_norm("blocks.ln1", LAYER + "attn_norm"),
        **_norm("blocks.ln2", LAYER + "attn_norm_2"),
        **{
            f"blocks.rwkv.W_{letter}": Key(f"{LAYER}time_mix_{name}.weight", "(n_heads d_head) d_model")
            for letter, name in projections.items()
        },
        "blocks.rwkv.W_O": Key(LAYER + "time_mix_output.weight", "d_model (n_heads d_head)"),
        "blocks.rwkv.ln_x.w": Key(LAYER + "time_mix_ln.weight", "(n_heads d_head)"),
        "blocks.rwkv.ln_x.b": Key(LAYER + "time_mix_ln.bias", "(n_heads d_head)"),
        "blocks.mlp.mix_k": Key(LAYER + "channel_mix_lerp_k.weight", "d_model"),
        "blocks.mlp.W_in": Key(LAYER + "channel_mix_key.weight", "d_mlp d_model"),
        "blocks.mlp.W_out": Key(LAYER + "channel_mix_value.weight", "d_model d_mlp"),
        **_norm("ln_final", "output_norm"),
        "unembed.W_U": Key("output.weight", "d_vocab d_model"),
    }


RWKV6 = {
    **_recurrent_keys(),
    **_mixes("wkvrg"),
    "blocks.rwkv.mix_x": Key(LAYER + "time_mix_lerp_x.weight", "d_model"),
    "blocks.rwkv.mix_1": Key(LAYER + "time_mix_w1.weight", "(n_mixes rank_mix) d_model"),
    "blocks.rwkv.mix_2": Key(LAYER + "time_mix_w2.weight", "n_mixes d_model rank_mix"),
    "blocks.rwkv.w0": Key(LAYER + "time_mix_decay.weight", "(n_heads d_head)"),
    "blocks.rwkv.w1": Key(LAYER + "time_mix_decay_w1.weight", "rank_decay d_model"),
    "blocks.rwkv.w2": Key(LAYER + "time_mix_decay_w2.weight", "(n_heads d_head) rank_decay"),
    "blocks.rwkv.u": Key(LAYER + "time_mix_first.weight", "n_heads d_head"),
    "blocks.rwkv.W_G": Key(LAYER + "time_mix_gate.weight", "(n_heads d_head) d_model"),
    "blocks.mlp.mix_r": Key(LAYER + "channel_mix_lerp_r.weight", "d_model"),
    "blocks.mlp.W_R": Key(LAYER + "channel_mix_receptance.weight", "d_gate d_model"),
}


def _low_rank(letter: str, rank: str) -> Keys:
    # The first layer takes its values as they are; what stands for it in the file is never read.
    name, first = f"{LAYER}time_mix_{letter}", 1 if letter == "v" else 0
    keys = {
        f"blocks.rwkv.{letter}1": Key(f"{name}1.weight", f"{rank} d_model", first=first),
        f"blocks.rwkv.{letter}2": Key(f"{name}2.weight", f"(n_heads d_head) {rank}", first=first),
    }
    if letter != "g":
        keys[f"blocks.rwkv.{letter}0"] = Key(f"{name}0.weight", "(n_heads d_head)", first=first)
    return keys


RWKV7 = {
    **_recurrent_keys(),
    **_mixes("rwkvag"),
    **{path: key for letter, rank in RANKS.items() for path, key in _low_rank(letter, rank).items()},
    "blocks.rwkv.k_k": Key(LAYER + "time_mix_k_k.weight", "(n_heads d_head)"),
    "blocks.rwkv.k_a": Key(LAYER + "time_mix_k_a.weight", "(n_heads d_head)"),
    "blocks.rwkv.r_k": Key(LAYER + "time_mix_r_k.weight", "(n_heads d_head)"),
}
