"""Gemma 3, text: five windowed layers to one that sees all, each kind with its own rotary base."""

from collections.abc import Mapping
from typing import Any

from jmi.errors import ConfigError
from jmi_models.decoder.norms import HeadNorm
from jmi_models.decoder.rope import Rope
from jmi_models.decoder.transformer import Transformer
from jmi_models.disk import words
from jmi_models.families import rope_config
from jmi_models.families.family import Family, Reader
from jmi_models.families.gemma2 import KEYS_WITH_POST_NORMS, gemma_fields
from jmi_models.families.usual import HEAD_NORMS, always, per_layer, read_usual, sliding_layers, windows

_KINDS = {"full_attention", "sliding_attention"}


def from_config(config: Mapping[str, Any]) -> Transformer:
    """Architecture of a Hugging Face Gemma3TextConfig, given as the dict in ``config.json``.

    Raises:
      ConfigError: a field that is missing, has a wrong type or asks for what is not implemented.
    """
    read = Reader(config)
    every = read.count("sliding_window_pattern", 6, old="_sliding_window_pattern")
    slides = sliding_layers(read, lambda layer: (layer + 1) % every != 0)
    # The cap of attention that some configs carry has no effect in this family.
    read.ignore("attn_logit_softcapping", "rope_local_base_freq")
    fields = gemma_fields(read)
    fields["attn"] |= {
        "windows": windows(read, 4096, lambda layer: slides[layer], optional=False),
        "qk_norm": HeadNorm(fields["norms"].norm),
    }
    far, near = ropes_by_kind(config, read.count("head_dim", 256), 1e6, 131072)
    arch = read_usual(
        read,
        "gemma3_text",
        n_ctx=131072,
        n_kv_heads=4,
        positions={"ropes": per_layer([near if slide else far for slide in slides])},
        logit_softcap=read.optional("final_logit_softcapping"),
        **fields,
    )
    read.finish()
    return arch


def by_kind(config: Mapping[str, Any]) -> bool:
    """Whether the config has rotary parameters for each kind of layer."""
    given = config.get("rope_parameters")
    return isinstance(given, Mapping) and not _KINDS.isdisjoint(given)


def ropes_by_kind(config: Mapping[str, Any], d_head: int, theta: float, length: int) -> tuple[Rope, Rope]:
    """Rotary embeddings of the layers that see all (by default of base ``theta``), and of windowed ones."""
    if by_kind(config):
        if surplus := sorted(set(config["rope_parameters"]) - _KINDS):
            raise ConfigError(f"config.json: rope_parameters of no kind of layer: {words.some(surplus)}")
        rest = {"max_position_embeddings": config.get("max_position_embeddings")}
        far, near = (
            {**rest, "rope_parameters": config["rope_parameters"].get(kind)}
            for kind in ("full_attention", "sliding_attention")
        )
    else:
        far, near = dict(config), {"rope_theta": config.get("rope_local_base_freq")}
    return (
        rope_config.read(far, d_head, theta, default_length=length),
        rope_config.read(near, d_head, 1e4, default_length=length),
    )


GEMMA3_TEXT = Family(
    name="gemma3_text", from_config=from_config, keys=always({**KEYS_WITH_POST_NORMS, **HEAD_NORMS})
)
