"""Tokenizer classes of transformers: which one a folder means, and what it does besides ``tokenizer.json``.

Source: transformers 5.24, ``AutoTokenizer`` and the constructors of the classes. Most classes take
``tokenizer.json`` as it is. Those listed here put steps together on their own; of what they put together,
jmi takes over what a folder can ask for by name (special tokens, ``add_prefix_space``), while all other
steps remain those of ``tokenizer.json``, which is what the model was trained with. Where a folder names a
class whose steps are not those of its ``tokenizer.json``, transformers gives other ids.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from jmi.errors import TokenizerError, printable

_END = "<|endoftext|>"


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a class of tokenizers does besides what its file says.

    Attributes:
      special: special tokens it has where the folder names none, such as ``eos_token`` -> text.
      prefix: its default of ``add_prefix_space``; None where it does not read that.
      plain: it never puts special tokens around a text.
      bare: its special tokens take no spaces beside them, whatever their flags say.
      metaspace: it writes spaces as "▁", with one before the text if there is a prefix.
    """

    special: Mapping[str, str] = dataclasses.field(default_factory=dict)
    prefix: bool | None = None
    plain: bool = False
    bare: bool = False
    metaspace: bool = False


GENERIC = Kind()
GPT2 = Kind({"unk_token": _END, "bos_token": _END, "eos_token": _END}, prefix=False)
_QWEN2 = Kind({"unk_token": _END, "eos_token": _END, "pad_token": _END}, prefix=False, bare=True)
_KINDS: Mapping[str, Kind] = {
    "GPT2Tokenizer": GPT2,
    "GPTNeoXTokenizer": Kind(
        {"unk_token": _END, "bos_token": _END, "eos_token": _END, "pad_token": "<|padding|>"},
        prefix=False,
        plain=True,
    ),
    "CodeGenTokenizer": GPT2,
    "Qwen2Tokenizer": _QWEN2,
    "Qwen3_5Tokenizer": _QWEN2,
    "LlamaTokenizer": Kind(
        {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}, prefix=True, metaspace=True
    ),
    "GemmaTokenizer": Kind(
        {
            "unk_token": "<unk>",
            "bos_token": "<bos>",
            "eos_token": "<eos>",
            "pad_token": "<pad>",
            "mask_token": "<mask>",
        }
    ),
    "CohereTokenizer": Kind(
        {
            "unk_token": "<UNK>",
            "bos_token": "<BOS_TOKEN>",
            "eos_token": "<|END_OF_TURN_TOKEN|>",
            "pad_token": "<PAD>",
            "cls_token": "<CLS>",
            "sep_token": "<SEP>",
            "mask_token": "<MASK_TOKEN>",
        },
        prefix=False,
    ),
}

_GENERIC = ("TokenizersBackend", "PythonBackend", "PreTrainedTokenizer", "BloomTokenizer")
# Classes that read add_prefix_space and that jmi does not know.
_OTHERS_WITH_PREFIX = re.compile(
    "(Albert|Barthez|Bart|BigBird|Blenderbot|Camembert|CLIP|Clvp|CodeLlama|Deberta|DebertaV2|LED|Luke|MarkupLM|"
    "MPNet|RemBert|Roberta|Whisper|XGLM|XLMRoberta|XLNet)Tokenizer"
)

# By model_type: the class that transformers registers, which decides between it and the folder's.
_REGISTERED: Mapping[str, str] = {
    **dict.fromkeys(("gpt2", "gpt_neo", "gptj", "opt", "phi", "starcoder2", "codegen"), "GPT2Tokenizer"),
    **dict.fromkeys(("gpt_neox", "olmo", "olmoe", "mamba", "mamba2", "mpt", "rwkv"), "GPTNeoXTokenizer"),
    **dict.fromkeys(("qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "qwen3_next"), "Qwen2Tokenizer"),
    **dict.fromkeys(("qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text"), "Qwen3_5Tokenizer"),
    **dict.fromkeys(("gemma", "gemma2", "gemma3", "gemma3_text", "recurrent_gemma"), "GemmaTokenizer"),
    **dict.fromkeys(("cohere", "cohere2"), "CohereTokenizer"),
    **dict.fromkeys(
        (
            *("flex_olmo", "glm", "glm4", "glm4_moe", "gpt_bigcode", "granite", "granitemoe", "jamba"),
            *("granitemoehybrid", "granitemoeshared", "internlm2", "internlm3", "minicpm3", "ministral"),
            *("ministral3", "mistral", "mistral3", "mixtral", "nemotron", "olmo2", "olmo3", "olmo_hybrid"),
            *("persimmon", "phi3", "phimoe", "stablelm"),
        ),
        "TokenizersBackend",
    ),
}
# Their registered class overrules what the folder says.
_OVERRULED = ("qwen2", "qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text")
_MISTRAL = ("mistral", "mistral3", "mixtral", "ministral", "ministral3")


def kind_of(name: str) -> Kind:
    """The kind of a class; of one that jmi does not know, `GENERIC`."""
    return _KINDS.get(name, GENERIC)


def may_prefix(name: str) -> bool:
    """Whether a class that jmi does not know reads ``add_prefix_space``."""
    return _OTHERS_WITH_PREFIX.fullmatch(name) is not None


def class_of(config: Mapping[str, Any], model: Mapping[str, Any], byte_level: bool) -> str:
    """Name of the class of a folder, without "Fast"; "TokenizersBackend" takes the file as it is.

    Args:
      config, model: ``tokenizer_config.json`` and ``config.json``; empty where they are absent.
      byte_level: ``tokenizer.json`` works on bytes, which a Llama tokenizer in the strict sense does not.

    Raises:
      TokenizerError: the class is no name.
    """
    model_type = model.get("model_type")
    model_type = model_type if isinstance(model_type, str) else ""
    registered = _REGISTERED.get(model_type)
    named = config.get("tokenizer_class") or model.get("tokenizer_class")
    if named is None:
        return registered or "TokenizersBackend"
    if not isinstance(named, str):
        raise TokenizerError(f"tokenizer_class must be a name, not {printable(repr(named))}; fix it")
    named = named.removesuffix("Fast")
    if named in _GENERIC or registered == "TokenizersBackend" != named:
        named = "TokenizersBackend"
    if named == "LlamaTokenizer" and byte_level and model_type not in _MISTRAL:
        return "TokenizersBackend"
    return registered if registered and model_type in _OVERRULED else named
