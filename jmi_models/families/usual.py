"""What most families share: the names of config fields and tensors that began with Llama."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from jmi.errors import ConfigError
from jmi.model.architecture import runs_of, stack_name
from jmi_models.decoder.attention import Attention
from jmi_models.decoder.mlp import Mlp
from jmi_models.decoder.norms import Norm, Norms
from jmi_models.decoder.positions import Positions
from jmi_models.decoder.rope import Rope
from jmi_models.decoder.transformer import Transformer
from jmi_models.disk.layout import Fused, Key
from jmi_models.families import rope_config
from jmi_models.families.family import Reader

LAYER = "model.layers.{i}."


def norm_keys(path: str, module: str) -> dict[str, Key]:
    """Keys of one norm over the stream."""
    return {
        f"{path}.w": Key(f"{module}.weight", "d_model"),
        f"{path}.b": Key(f"{module}.bias", "d_model"),
    }


EMBEDDINGS = {
    "embed.W_E": Key("model.embed_tokens.weight", "d_vocab d_model"),
    **norm_keys("ln_final", "model.norm"),
    "unembed.W_U": Key("lm_head.weight", "d_vocab d_model"),
    "unembed.b_U": Key("lm_head.bias", "d_vocab"),
}
PRE_NORMS = {
    **norm_keys("blocks.ln1", LAYER + "input_layernorm"),
    **norm_keys("blocks.ln2", LAYER + "post_attention_layernorm"),
}
HEAD_NORMS = {
    "blocks.attn.q_norm.w": Key(LAYER + "self_attn.q_norm.weight", "d_head"),
    "blocks.attn.k_norm.w": Key(LAYER + "self_attn.k_norm.weight", "d_head"),
}
JOINT_NORMS = {
    "blocks.attn.q_norm.w": Key(LAYER + "self_attn.q_norm.weight", "(n_heads d_head)"),
    "blocks.attn.k_norm.w": Key(LAYER + "self_attn.k_norm.weight", "(n_kv_heads d_head)"),
}


def attention_keys(module: str, names: str = "q_proj k_proj v_proj o_proj") -> dict[str, Key]:
    """Keys of four separate projections."""
    heads = {"Q": "n_heads", "K": "n_kv_heads", "V": "n_kv_heads"}
    *three, out = names.split()
    keys = {}
    for (letter, axis), name in zip(heads.items(), three, strict=True):
        keys[f"blocks.attn.W_{letter}"] = Key(f"{module}{name}.weight", f"({axis} d_head) d_model")
        keys[f"blocks.attn.b_{letter}"] = Key(f"{module}{name}.bias", f"({axis} d_head)")
    keys["blocks.attn.W_O"] = Key(f"{module}{out}.weight", "d_model (n_heads d_head)")
    keys["blocks.attn.b_O"] = Key(f"{module}{out}.bias", "d_model")
    return keys


def fused_keys(name: str, out: str, groups: str = "n_kv_heads") -> dict[str, Key]:
    """Keys of one fused projection: for each of ``groups`` its queries, its key and its value."""
    parts = ("group d_head", "d_head", "d_head")
    if not groups:
        parts = ("n_heads d_head", "n_kv_heads d_head", "n_kv_heads d_head")
    keys = {}
    for i, (letter, axis) in enumerate({"Q": "n_heads", "K": "n_kv_heads", "V": "n_kv_heads"}.items()):
        fused = Fused(groups, parts, i)
        keys[f"blocks.attn.W_{letter}"] = Key(f"{name}.weight", f"[{axis} d_head] d_model", fused)
        keys[f"blocks.attn.b_{letter}"] = Key(f"{name}.bias", f"[{axis} d_head]", fused)
    keys["blocks.attn.W_O"] = Key(f"{out}.weight", "d_model (n_heads d_head)")
    keys["blocks.attn.b_O"] = Key(f"{out}.bias", "d_model")
    return keys


def mlp_keys(module: str, names: str, path: str = "blocks.mlp", width: str = "d_mlp") -> dict[str, Key]:
    """Keys of an MLP; ``names`` are those of gate, linear branch and output, or of the last two."""
    *branches, out = names.split()
    keys = {}
    for name, stored in zip(("gate", "in")[-len(branches) :], branches, strict=True):
        keys[f"{path}.W_{name}"] = Key(f"{module}{stored}.weight", f"{width} d_model")
        keys[f"{path}.b_{name}"] = Key(f"{module}{stored}.bias", width)
    keys[f"{path}.W_out"] = Key(f"{module}{out}.weight", f"d_model {width}")
    keys[f"{path}.b_out"] = Key(f"{module}{out}.bias", "d_model")
    return keys


MLP = mlp_keys(LAYER + "mlp.", "gate_proj up_proj down_proj")

KEYS: Mapping[str, Key] = {**EMBEDDINGS, **PRE_NORMS, **attention_keys(LAYER + "self_attn."), **MLP}
"""Tensors of Llama, with biases wherever a relative has one."""


def gpt_fields(read: Reader, n_ctx: int) -> dict[str, Any]:
    """Fields of `Transformer` in the names of GPT-2's config, which GPT-J took over."""
    d_model, n_heads = read.count("n_embd"), read.count("n_head")
    read.divides("n_head", n_heads, "n_embd", d_model)
    return {
        "n_layers": read.layers("n_layer"),
        "d_model": d_model,
        "n_heads": n_heads,
        "n_kv_heads": n_heads,
        "d_head": d_model // n_heads,
        "d_mlp": read.count("n_inner", 4 * d_model),
        "d_vocab": read.count("vocab_size"),
        "n_ctx": read.count("n_positions", n_ctx),
        "norms": Norms(Norm("layer", read.eps("layer_norm_epsilon", 1e-5), bias=True)),
        "mlp": Mlp(read.activation("activation_function", "gelu_new"), gated=False, bias=True),
    }


def always(keys: Mapping[str, Key]) -> Callable[[Transformer], Mapping[str, Key]]:
    """Keys that are the same for every member of a family."""
    return lambda arch: keys


def by_kind(keys: Mapping[str, Key], dense: Mapping[str, Key]) -> Callable[[Transformer], Mapping[str, Key]]:
    """Keys of a family whose layers are mixtures, some of them with an MLP instead, which has ``dense`` keys.

    Each run of like layers is a stack of its own.
    """

    def of(arch: Transformer) -> Mapping[str, Key]:
        if len(set(arch.kinds)) == 1:
            return keys
        found = {path: key for path, key in keys.items() if not path.startswith("blocks.")}
        for run in runs_of(arch):
            own = {**keys, **dense} if arch.kinds[run.start] == "mlp" else keys
            for path, key in own.items():
                if path.startswith("blocks."):
                    name = f"blocks.{stack_name(run)}.{path.removeprefix('blocks.')}"
                    found[name] = dataclasses.replace(key, start=run.start)
        return found

    return of


def read_usual(
    read: Reader,
    family: str,
    norms: Norms,
    *,
    n_ctx: int = 2048,
    n_kv_heads: int | None = None,
    d_head: int | None = None,
    act: str = "silu",
    theta: float = 1e4,
    partial: float | None = None,
    tied: bool = False,
    **fields: Any,
) -> Transformer:
    """Architecture from the usual config fields.

    Args:
      n_ctx, n_kv_heads, d_head, act, theta, partial, tied: what the family takes where the config is
        silent.
      fields: fields of `Transformer` that the family decides otherwise; of ``attn``, ``mlp`` and
        ``positions`` a mapping with those of their own fields.
    """
    d_model, n_heads = read.count("hidden_size"), read.count("num_attention_heads")
    # The class has a number for a field that is absent; null says that each query head has its own.
    absent = "num_key_value_heads" not in read.config
    groups = read.count("num_key_value_heads", n_kv_heads if absent and n_kv_heads else n_heads)
    if d_head is None and read.config.get("head_dim") is None:
        read.divides("num_attention_heads", n_heads, "hidden_size", d_model)
    width = read.count("head_dim", d_head or d_model // n_heads)
    read.divides("num_key_value_heads", groups, "num_attention_heads", n_heads)
    longest = read.count("max_position_embeddings", n_ctx)
    attn, mlp, positions = (dict(fields.pop(name, {})) for name in ("attn", "mlp", "positions"))
    if "ropes" not in positions:
        rope = rope_config.read(read.config, width, theta, partial, n_ctx)
        read.ignore("partial_rotary_factor")
        positions["ropes"], longest = (rope,), rope.scaling.reach(longest)
    if "act_fn" not in mlp:
        mlp["act_fn"] = read.activation("hidden_act", act)
    return Transformer(
        **{
            "family": family,
            "n_layers": read.layers(),
            "d_model": d_model,
            "n_heads": n_heads,
            "n_kv_heads": groups,
            "d_head": width,
            "d_mlp": read.count("intermediate_size"),
            "d_vocab": read.count("vocab_size"),
            "n_ctx": longest,
            "norms": norms,
            "attn": Attention(**{"scale": width**-0.5, **attn}),
            "mlp": Mlp(**mlp),
            "positions": Positions(**positions),
            "tied": read.flag("tie_word_embeddings", tied),
            **fields,
        }
    )


def rms(read: Reader, eps: float = 1e-6, gain: Any = "w") -> Norm:
    """RMSNorm with the usual name of its epsilon."""
    return Norm("rms", read.eps("rms_norm_eps", eps), gain)


def one_window(read: Reader, default: int | None) -> tuple[int | None, ...]:
    """The window of a family whose layers are all alike."""
    window = _window(read, default)
    return () if window is None else (window,)


def windows(
    read: Reader, default: int | None, slides: Callable[[int], bool], *, optional: bool = True
) -> tuple[int | None, ...]:
    """Window of each layer: as ``layer_types`` says, else where ``slides(layer)``.

    Args:
      optional: a window of null means that no layer has one.
    """
    n_layers, window = read.layers(), _window(read, default)
    kinds = sliding_layers(read, slides)
    told = read.config.get("layer_types") is not None
    if window is None and any(kinds) and (told or not optional):
        raise ConfigError("config.json: this model has sliding layers, but sliding_window is null")
    if window is None or not any(kinds):
        return ()
    return tuple(window if kinds[i] else None for i in range(n_layers))


def _window(read: Reader, default: int | None) -> int | None:
    """The number of keys that a query sees; None where the config says null."""
    read.ignore("sliding_window")
    if read.config.get("sliding_window", default) is None:
        return None
    return read.count("sliding_window", default)


def sliding_layers(read: Reader, slides: Callable[[int], bool]) -> tuple[bool, ...]:
    """For each layer whether its attention is a sliding one."""
    n_layers, kinds = read.layers(), read.config.get("layer_types")
    read.ignore("layer_types")
    if kinds is None:
        return tuple(slides(i) for i in range(n_layers))
    known = ("sliding_attention", "full_attention")
    if not isinstance(kinds, list) or len(kinds) != n_layers or any(kind not in known for kind in kinds):
        raise ConfigError(f"config.json: layer_types must name {n_layers} layers, each {' or '.join(known)}")
    return tuple(kind == known[0] for kind in kinds)


def per_layer(ropes: list[Rope | None]) -> tuple[Rope | None, ...]:
    """``ropes`` of all layers, once if they are the same."""
    return tuple(ropes[:1] if len(set(ropes)) == 1 else ropes)
