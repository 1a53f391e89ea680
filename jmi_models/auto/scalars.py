"""What the config of an unknown family says about its forward pass, under the usual field names."""

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

from jmi.errors import ConfigError
from jmi_models.auto.harmless import refuse_unread_rope
from jmi_models.auto.notes import Notes
from jmi_models.decoder.norms import Norm
from jmi_models.decoder.rope import Rope
from jmi_models.families import rope_config
from jmi_models.families.family import Reader
from jmi_models.families.gemma3_text import by_kind, ropes_by_kind
from jmi_models.families.smollm3 import turning_layers
from jmi_models.families.usual import one_window, per_layer, sliding_layers, windows

_MULTIPLIERS: Mapping[str, tuple[str, Callable[[float], float]]] = {
    "attn_logit_softcapping": ("attn.softcap", lambda x: x),
    "final_logit_softcapping": ("logit_softcap", lambda x: x),
    "clip_qkv": ("attn.clip_qkv", lambda x: x),
    "query_pre_attn_scalar": ("attn.scale", lambda x: x**-0.5),
    "attention_multiplier": ("attn.scale", lambda x: x),
    "embedding_multiplier": ("embed_scale", lambda x: x),
    "residual_multiplier": ("residual_scale", lambda x: x),
    "logits_scaling": ("logit_scale", lambda x: 1 / x),
    "logit_scale": ("logit_scale", lambda x: x),
}
"""Config field -> (path of the architecture field, its value there)."""

_EPSILONS: Mapping[str, Literal["rms", "layer"] | None] = {
    "rms_norm_eps": "rms",
    "layer_norm_eps": "layer",
    "layer_norm_epsilon": "layer",
    "norm_epsilon": "layer",
    "norm_eps": None,
}
"""Config field -> the norm whose epsilon is called so."""

_ONLY: Mapping[str, Any] = {
    "use_bidirectional_attention": False,
    "add_cross_attention": False,
    "is_encoder_decoder": False,
    "alibi": False,
    "pretraining_tp": 1,
}
"""Config field -> the only value that is implemented."""

_ACTIVATIONS = ("hidden_activation", "hidden_act", "activation_function")

# Known of these families and their kin by name alone (as implemented in Hugging Face transformers).
_ONE_PLUS_W, _SCALED = "gemma|nemotron", "gemma"
_SCALED_EVERYWHERE = "gpt_oss"
_INTERLEAVED, _UNTURNED = "cohere|^glm4?$|helium|ernie4_5", "cohere2|exaone4"


def norm(read: Reader, gain: bool, bias: bool, notes: Notes) -> Norm:
    """The norm of the residual stream.

    Args:
      gain, bias: whether it has them in the checkpoint.
    """
    name = next((name for name in _EPSILONS if read.config.get(name) is not None), None)
    eps, named = (read.eps(name, 1e-5), _EPSILONS[name]) if name else (1e-5, None)
    kind, source = ("layer", "tensors: a bias") if bias else (named, f"config: {name}")
    if name is None:
        notes.assume(f"the epsilon of norms is {eps}: the config names none")
    if kind is None:
        kind, source = "rms" if gain else "layer", "assumed"
        notes.assume(f"norms are {kind} norms: neither a bias nor the name of their epsilon tells")
    notes.found("norms.norm", f"{kind}, eps {eps}{', bias' * bias}{', no gain' * (not gain)}", source)
    if not gain:
        notes.assume("the norms of the residual stream have no weights, and no other norm is without")
        return Norm(kind, eps, "none")
    if _known(read, _ONE_PLUS_W):
        notes.assume(f"norms multiply by one plus their weight: model_type {read.config['model_type']!r}")
        return Norm(kind, eps, "1 + w", bias)
    notes.assume("norms multiply by their weight; by one plus the weight, as in Gemma, would look the same")
    return Norm(kind, eps, "w", bias)


def activation(read: Reader, gated: bool, notes: Notes) -> str:
    """The activation function of the MLP."""
    name = next((name for name in _ACTIVATIONS if read.config.get(name) is not None), None)
    read.ignore(*_ACTIVATIONS)
    if name is not None:
        return str(notes.found("mlp.act_fn", read.activation(name, "silu"), f"config: {name}"))
    if not gated:
        raise ConfigError(f"config.json names no activation; looked for {', '.join(_ACTIVATIONS)}")
    notes.assume("the activation is silu: the config names none")
    return "silu"


def multipliers(read: Reader, notes: Notes) -> dict[str, float]:
    """Soft-caps, clamps and multipliers, by path of the architecture field."""
    fields: dict[str, float] = {}
    for name, (field, meaning) in _MULTIPLIERS.items():
        value = read.optional(name)
        if value is None:
            continue
        if field in fields:
            raise ConfigError(f"config.json: '{name}' and another field both give the {field}")
        fields[field] = notes.found(field, meaning(value), f"config: {name}")
    if "embed_scale" not in fields and _known(read, _SCALED):
        fields["embed_scale"] = read.count("hidden_size") ** 0.5
        notes.assume(f"embeddings are scaled by sqrt(hidden_size): model_type {read.config['model_type']!r}")
    elif "embed_scale" not in fields:
        notes.assume("embeddings are not scaled: the config has no embedding_multiplier")
    return fields


def positions(read: Reader, width: int, notes: Notes) -> dict[str, Any]:
    """Windows and rotary embeddings, by path of the field; ropes only where layers differ in it."""
    for name, value in _ONLY.items():
        read.only(name, value)
    slides = _slides(read, notes)
    interleaved = _known(read, _INTERLEAVED)
    if interleaved:
        notes.assume(f"rotary embedding is interleaved: model_type {read.config['model_type']!r}")
    else:
        notes.assume("rotary embedding turns the two halves of a head; interleaved would look the same")
    parts = [read.config.get(name) or {} for name in ("rope_parameters", "rope_scaling")]
    if read.config.get("rope_theta") is None and "rope_theta" not in str(parts):
        notes.assume("the rotary base is 10000: the config has no rope_theta")
    if read.config.get("max_position_embeddings") is None:
        notes.assume("the context holds 2048 tokens: the config has no max_position_embeddings")
    ropes = _ropes(read, width, slides, notes)
    fields = {"attn.windows": slides, "positions.interleaved": interleaved}
    return fields | ({"positions.ropes": ropes} if ropes else {})


def _ropes(read: Reader, width: int, slides: tuple[int | None, ...], notes: Notes) -> tuple[Rope | None, ...]:
    """Rotary embedding of each layer, where the config says that layers differ in it."""
    config = read.config
    read.ignore("rope_local_base_freq", "partial_rotary_factor")
    refuse_unread_rope(read)
    if config.get("no_rope_layers") is not None or config.get("no_rope_layer_interval") is not None:
        rope = rope_config.read(config, width, 1e4, 1.0)
        turns = turning_layers(read)
        notes.found("positions.ropes", f"in {sum(turns)} of {len(turns)} layers", "config: no_rope_layers")
        return per_layer([rope if turn else None for turn in turns])
    if config.get("rope_local_base_freq") is not None or by_kind(config):
        far, near = ropes_by_kind(config, width, 1e4, 2048)
        source = "rope_parameters" if by_kind(config) else "rope_local_base_freq"
        notes.found("positions.ropes", "one for windowed layers, one for the others", f"config: {source}")
        return per_layer([near if window else far for window in slides or (None,)])
    if len(set(slides)) > 1 and _known(read, _UNTURNED):
        notes.assume(f"layers without a window have no rotary embedding: model_type {config['model_type']!r}")
        rope = rope_config.read(config, width, 1e4, 1.0)
        return tuple(rope if window else None for window in slides)
    if len(set(slides)) > 1:
        if rope_config.scaled(config) and not _known(read, _SCALED_EVERYWHERE):
            raise ConfigError(
                "config.json: layers differ in their window, and it does not say whether the scaling of the "
                "rotary embedding is that of all of them; give rope_parameters for each kind of layer"
            )
        notes.assume("layers with and without a window have the same rotary embedding")
    return ()


def _slides(read: Reader, notes: Notes) -> tuple[int | None, ...]:
    """Window of each layer, as in `Attention`."""
    config = read.config
    read.ignore("sliding_window", "sliding_window_pattern", "max_window_layers", "layer_types")
    read.ignore("_sliding_window_pattern")
    if not read.flag("use_sliding_window", True):
        notes.found("attn.windows", "none", "config: use_sliding_window")
        return ()
    if config.get("layer_types") is not None:
        sliding_layers(read, lambda layer: False)  # refuses kinds of layers that are unknown
        found, source = windows(read, None, lambda layer: False), "layer_types"
    elif config.get("sliding_window") is None:
        return ()
    elif any(config.get(name) is not None for name in ("sliding_window_pattern", "_sliding_window_pattern")):
        every = read.count("sliding_window_pattern", old="_sliding_window_pattern")
        found, source = windows(read, None, lambda layer: (layer + 1) % every != 0), "sliding_window_pattern"
    elif config.get("max_window_layers") is not None:
        late = read.count("max_window_layers")
        found, source = windows(read, None, lambda layer: layer >= late), "max_window_layers"
        notes.assume(f"layers from {late} on have the window, as max_window_layers means in Qwen 2")
    else:
        found, source = one_window(read, None), "sliding_window"
        notes.assume(
            f"every layer has the window of {config['sliding_window']}: the config does not say which"
        )
    some = [window for window in found if window]
    share = "every layer" if len(found) == 1 else f"{len(some)} of {len(found)} layers"
    notes.found("attn.windows", f"{some[0]} in {share}" if some else "none", f"config: {source}")
    return found


def _known(read: Reader, kin: str) -> bool:
    return re.search(kin, str(read.config.get("model_type"))) is not None
