"""Config fields of an unknown family that may stay unread; every other one is refused.

A field that nobody reads may change the forward pass, whatever it is called. So only what is known to be
of training, of generation, or bookkeeping may have any value, and what is switched off may be there.
"""

import re
from typing import Any

from jmi.errors import ConfigError
from jmi_models.disk import words
from jmi_models.families import rope_config
from jmi_models.families.family import Reader
from jmi_models.families.gemma3_text import by_kind

_FIELDS = (
    # Tokens and text.
    *(r"\w*token_ids?", r"vocab_file|merges_file|tokenizer\w*|languages?|license|naming|params"),
    # Training.
    *(r"\w*dropout(_prob|_p|_rate)?", r"\w*(initializer|init)_(range|std|method|scale|cutoff_factor)"),
    *(r"(\w*_)?(aux|z)_loss\w*", r"\w*jitter_noise", r"label_smoothing\w*|finetuning_task|pruned_heads"),
    *(r"tensor_parallel\w*|sequence_parallel|\w*recompute\w*|(use_)?gradient_checkpointing\w*",),
    # Heads for other tasks.
    *(r"classifier_\w+|summary_\w+|num_labels|problem_type|tie_encoder_decoder",),
    # How far it was trained to read, which bounds no computation.
    *(
        r"seq(uence)?_length|max_seq(uence)?_len(gth)?|model_max_length|n_positions|n_ctx|initial_context_length",
    ),
    # How the same numbers are computed.
    *(r"(use_)?_?flash_att(ention|n)\w*|use_\w*kernels?|fused?_\w+|use_mem_eff_path|num_logits_to_keep",),
    # Generation.
    *(r"(max|min)(_new)?_(length|tokens)|do_sample|temperature|top_[kp]|num_beams|\w+_penalty",),
    *(r"num_return_sequences|no_repeat_ngram_size|return_dict\w*|output_\w+|use_cache\w*",),
)
"""Patterns of whole names."""

_TOLD = 8

_FACTOR = r"scale|scaling|multipliers?|factor"
"""In the names of what multiplies, and does nothing where it is one."""

_USUALLY_ON = r"^(use|apply|with|enable|do)_(rope|rotary|pos|norm|residual)|causal|scale_attn"
"""In the names of switches that a usual decoder has on."""


def refuse_unread(read: Reader) -> None:
    """Refuse what nobody read, unless it is known to change nothing.

    Raises:
      ConfigError: naming every such field and its value.
    """
    unknown = [name for name in read.unread() if not _harmless(name, read.config[name])]
    if unknown:
        told = [f"{words.name(name)}={words.value(read.config[name])}" for name in unknown[:_TOLD]]
        more = f" and {len(unknown) - _TOLD} more" if len(unknown) > _TOLD else ""
        raise ConfigError(
            f"config.json: what {', '.join(told)}{more} does to the forward pass is not known; if it is "
            "nothing, take it out"
        )


def refuse_unread_rope(read: Reader) -> None:
    """The same of what the config says about rotary embedding."""
    parts: list[Any] = [read.config]
    if by_kind(read.config):
        parts = [{"rope_parameters": part} for part in read.config["rope_parameters"].values()]
    unknown = sorted({name for part in parts for name in rope_config.unread(part)})
    if unknown:
        raise ConfigError(
            f"config.json: rotary embedding with {words.some(unknown)}: what it does is not known, so the "
            "model cannot be inferred"
        )


def _harmless(name: str, value: Any) -> bool:
    if any(re.fullmatch(pattern, name) for pattern in _FIELDS):
        return True
    if value is False:
        return re.search(_USUALLY_ON, name) is None
    if value in ("", [], {}):
        return True
    ones = value if isinstance(value, list) else [value]
    return re.search(_FACTOR, name) is not None and all(one == 1 and one is not True for one in ones)
