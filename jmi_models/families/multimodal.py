"""The text model inside a model that also sees or hears: its config and its tensors, the rest left out.

Only kinds are listed whose text, without an image or a sound, passes through the text model alone and
unchanged. Positions along several axes (``mrope``) coincide for text, so rotary embeddings are plain ones.
"""

import dataclasses
from collections import Counter
from collections.abc import Mapping
from typing import Any

from jmi.errors import ConfigError
from jmi_models.disk import words
from jmi_models.disk.tensors import Stored

_LLAMA = {"vocab_size": 32000, "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32}
_QWEN = {**_LLAMA, "vocab_size": 151936, "intermediate_size": 22016}
_QWEN_VL = {
    **{"vocab_size": 152064, "hidden_size": 8192, "intermediate_size": 29568, "num_hidden_layers": 80},
    **{"num_attention_heads": 64, "num_key_value_heads": 8, "rope_theta": 1e6, "max_window_layers": 80},
}

_TEXTS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "llama": ("llama", {**_LLAMA, "intermediate_size": 11008}),
    "mistral": ("mistral", {**_LLAMA, "intermediate_size": 14336}),
    "qwen2": ("qwen2", _QWEN),
    "qwen3": ("qwen3", _QWEN),
    "qwen2_vl_text": ("qwen2", _QWEN_VL),
    "qwen2_5_vl_text": ("qwen2", _QWEN_VL),
    "qwen3_vl_text": ("qwen3", {**_QWEN, "max_position_embeddings": 128000, "rope_theta": 5e5}),
    "gemma3_text": (
        "gemma3_text",
        {
            **{"vocab_size": 262208, "hidden_size": 2304, "intermediate_size": 9216},
            **{"num_hidden_layers": 26, "num_attention_heads": 8},
        },
    ),
    "opt": (
        "opt",
        {
            **{"vocab_size": 50272, "hidden_size": 768, "ffn_dim": 3072, "num_hidden_layers": 12},
            **{"num_attention_heads": 12, "max_position_embeddings": 2048},
        },
    ),
}
"""``model_type`` of a text config -> the family it is, and what its class takes for fields left out."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of multimodal model.

    Attributes:
      text: ``model_type`` of its text config where that does not say.
      tied: what its class takes for ``tie_word_embeddings``; None where the text config alone decides.
      flat: older configs have the fields of the text model beside those of the whole.
      sizes: what its text config leaves out is what the class of that takes, and not of the kind's own.
    """

    text: str
    tied: bool | None = False
    flat: bool = False
    sizes: bool = True


KINDS: Mapping[str, Kind] = {
    "gemma3": Kind("gemma3_text", True),
    "mistral3": Kind("mistral", True),
    "qwen2_vl": Kind("qwen2_vl_text", flat=True),
    "qwen2_5_vl": Kind("qwen2_5_vl_text", flat=True),
    "qwen3_vl": Kind("qwen3_vl_text"),
    **dict.fromkeys(("llava", "llava_next", "llava_next_video", "video_llava", "vipllava"), Kind("llama")),
    **dict.fromkeys(("idefics3", "smolvlm"), Kind("llama")),
    "idefics2": Kind("mistral"),
    **dict.fromkeys(("llava_onevision", "video_llama_3"), Kind("qwen2")),
    **dict.fromkeys(("internvl", "got_ocr2", "ovis2"), Kind("qwen2", True)),
    **dict.fromkeys(("lighton_ocr", "qwen3_asr"), Kind("qwen3", True)),
    **dict.fromkeys(("janus", "deepseek_vl"), Kind("llama", True)),
    "glmasr": Kind("llama", True, sizes=False),
    "qwen2_audio": Kind("qwen2", None),
    "voxtral": Kind("llama", None, sizes=False),
    **dict.fromkeys(("blip-2", "instructblip"), Kind("opt", None)),
}
"""``model_type`` -> what is known of it."""

_OTHERWISE = {
    "paligemma": "it reads a prompt in both directions",
    "granite_speech": "its text model is changed by an adapter while it hears",
    "mllama": "some of its layers read the image alone",
    **dict.fromkeys(
        ("aya_vision", "cohere2_vision"),
        "its class in transformers leaves out the scale of logits that the text model alone has",
    ),
}
"""Kinds whose text model is not the model that answers to text, with the reason."""

_PLACES = (
    ("model.language_model.", "model."),
    ("model.text_model.", "model."),
    ("language_model.", ""),
)
"""How names of the text model begin, and what stands there in one that is alone."""

_TRUNK = ("model.layers.", "model.decoder.", "model.embed_tokens.", "model.norm.")
_HEAD = "lm_head."

_ONLY = {
    **{"is_causal": True, "use_bidirectional_attention": False},
    **{"is_encoder_decoder": False, "add_cross_attention": False},
}
"""Fields of a text config, and the one value with which it runs alone."""


@dataclasses.dataclass(frozen=True)
class Part:
    """What is read of a model folder.

    Attributes:
      config: of the text model.
      headers: its tensors, by the names of its family.
      left_out: the parts that are not read, each with the number of its tensors.
      family: of the text model; None for a model that is no multimodal one, of which nothing is changed.
    """

    config: Mapping[str, Any]
    headers: Mapping[str, Stored]
    left_out: Mapping[str, int] = dataclasses.field(default_factory=dict)
    family: str | None = None

    def told(self) -> str:
        """What is left out, in words."""
        return ", ".join(f"{words.name(part)} ({count} tensors)" for part, count in self.left_out.items())


def text_part(config: Mapping[str, Any], headers: Mapping[str, Stored]) -> Part:
    """The text model of a multimodal one; any other model as it is.

    Raises:
      ConfigError: a multimodal model of another kind, or one whose text model is of no known family.
    """
    kind = KINDS.get(str(config.get("model_type")))
    if kind is None:
        _refuse_others(config)
        return Part(config, headers)
    text = config.get("text_config")
    if text is None and kind.flat:
        text = {
            name: value
            for name, value in config.items()
            if not (isinstance(value, Mapping) and name.endswith("_config"))
            and not name.endswith("_token_id")
        }
        text["model_type"] = kind.text
    if not isinstance(text, Mapping):
        raise ConfigError(f"config.json: 'text_config' must be an object, got {words.value(text)}")
    given = text.get("model_type", kind.text)
    if str(given) not in _TEXTS:
        raise ConfigError(
            f"config.json: a {config['model_type']} with a text model of type {words.value(given)}, which is "
            f"not supported inside another; supported: {', '.join(_TEXTS)}"
        )
    family, defaults = _TEXTS[given]
    found = {
        **(defaults if kind.sizes else {}),
        **{name: value for name, value in text.items() if value is not None},
    }
    found["model_type"] = family
    if kind.tied is not None:
        found["tie_word_embeddings"] = config.get("tie_word_embeddings", kind.tied)
    for name in ("rope_scaling", "rope_parameters"):
        found[name] = _of_text(found.get(name))
    if "quantization_config" in config:
        found["quantization_config"] = config["quantization_config"]
    for name, value in _ONLY.items():
        if found.pop(name, value) != value:
            raise ConfigError(f"config.json: {name} of the text model is not {value}: it does not run alone")
    kept, left_out = _split(headers)
    return Part(found, kept, left_out, family)


def text_name(name: str) -> str | None:
    """A name, as any of these models has it, as the text model alone has it; None of another part."""
    for start, instead in _PLACES:
        if name.startswith(start):
            rest = name.removeprefix(start)
            return rest if rest.startswith(_HEAD) else instead + rest
    return name if name.startswith((*_TRUNK, _HEAD)) else None


def _split(headers: Mapping[str, Stored]) -> tuple[dict[str, Stored], dict[str, int]]:
    """Tensors of the text model by its own names, and how many there are of each other part."""
    named = {name: text_name(name) for name in headers}
    kept = {new: headers[name] for name, new in named.items() if new is not None}
    others = (name.split(".") for name, new in named.items() if new is None)
    return kept, dict(Counter(".".join(parts[: 1 + (parts[0] == "model")]) for parts in others))


def _of_text(rope: Any) -> Any:
    """What describes rotary embeddings, for one axis of positions."""
    if not isinstance(rope, Mapping):
        return rope
    kept = {name: value for name, value in rope.items() if name not in ("mrope_section", "mrope_interleaved")}
    return {name: "default" if value == "mrope" else value for name, value in kept.items()}


def _refuse_others(config: Mapping[str, Any]) -> None:
    text = config.get("text_config")
    kind = config.get("model_type")
    why = _OTHERWISE.get(str(kind), "how it is used there is not known")
    if isinstance(text, Mapping) and (str(kind) in _OTHERWISE or str(text.get("model_type")) in _TEXTS):
        raise ConfigError(
            f"model_type {words.value(kind)} holds a text model of type "
            f"{words.value(text.get('model_type'))}, but {why}; read are {', '.join(KINDS)}"
        )
