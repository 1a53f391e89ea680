"""The families jmi knows, by Hugging Face ``model_type``."""

import difflib
from collections.abc import Mapping
from typing import Any

from jmi.errors import ConfigError
from jmi_models.disk.tensors import Stored
from jmi_models.families import blinkdl
from jmi_models.families.bloom import BLOOM
from jmi_models.families.cohere import COHERE
from jmi_models.families.cohere2 import COHERE2
from jmi_models.families.falcon import FALCON
from jmi_models.families.family import AnyArch, Family
from jmi_models.families.gemma import GEMMA
from jmi_models.families.gemma2 import GEMMA2
from jmi_models.families.gemma3_text import GEMMA3_TEXT
from jmi_models.families.gpt2 import GPT2
from jmi_models.families.gpt_neox import GPT_NEOX
from jmi_models.families.gpt_oss import GPT_OSS
from jmi_models.families.gptj import GPTJ
from jmi_models.families.granite import GRANITE
from jmi_models.families.llama import LLAMA
from jmi_models.families.mistral import MISTRAL
from jmi_models.families.mixtral import MIXTRAL
from jmi_models.families.olmo import OLMO
from jmi_models.families.olmo2 import OLMO2
from jmi_models.families.olmoe import OLMOE
from jmi_models.families.opt import OPT
from jmi_models.families.phi import PHI
from jmi_models.families.phi3 import PHI3
from jmi_models.families.qwen2 import QWEN2
from jmi_models.families.qwen2_moe import QWEN2_MOE
from jmi_models.families.qwen3 import QWEN3
from jmi_models.families.qwen3_moe import QWEN3_MOE
from jmi_models.families.rwkv6 import RWKV6
from jmi_models.families.rwkv7 import RWKV7
from jmi_models.families.smollm3 import SMOLLM3
from jmi_models.families.stablelm import STABLELM
from jmi_models.families.starcoder2 import STARCODER2

_ALL = (
    *(LLAMA, MISTRAL, QWEN2, QWEN3, GEMMA, GEMMA2, GEMMA3_TEXT, PHI3, STARCODER2, GPT2, GPT_NEOX, GPTJ, OPT),
    *(OLMO, OLMO2, PHI, STABLELM, FALCON, COHERE, COHERE2, GRANITE, SMOLLM3, BLOOM),
    *(RWKV6, RWKV7),
    *(MIXTRAL, QWEN2_MOE, QWEN3_MOE, OLMOE, GPT_OSS),
)
FAMILIES: Mapping[str, Family] = {family.name: family for family in _ALL}


def needs_no_config(headers: Mapping[str, Stored]) -> bool:
    """Whether the tensors alone tell what a model is."""
    return blinkdl.is_original(headers)


def is_known(config: Mapping[str, Any], headers: Mapping[str, Stored]) -> bool:
    """Whether a model is of a supported family."""
    return str(config.get("model_type")) in FAMILIES or needs_no_config(headers)


def described(config: Mapping[str, Any], headers: Mapping[str, Stored]) -> tuple[Family, AnyArch]:
    """Family and architecture of a supported model, from its config and what its tensors tell beyond it.

    Args:
      headers: its tensors; empty where they are not known.

    Raises:
      ConfigError, CheckpointError: the config or the tensors are not those of a supported model.
    """
    if needs_no_config(headers):
        return blinkdl.describe(headers, config)
    family = family_of(config)
    arch = family.from_config(config)
    return family, arch if family.fit is None else family.fit(arch, family.keys(arch), headers)


def family_of(config: Mapping[str, Any]) -> Family:
    """The family that a ``config.json`` belongs to; ConfigError names the supported ones."""
    kind = str(config.get("model_type"))
    if kind in FAMILIES:
        return FAMILIES[kind]
    near = difflib.get_close_matches(kind, FAMILIES, n=1)
    hint = f" (nearest: {near[0]})" if near else ""
    raise ConfigError(f"model_type {kind!r} is not supported{hint}; supported: {', '.join(FAMILIES)}")
