"""Tiny multimodal models of transformers, made and saved by it, and what they give for a text alone."""

import importlib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torch
    import transformers
    from transformers.models.auto import modeling_auto

from tests.oracles.hugging_face import float64_in

_TEXT = {
    **{"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "vocab_size": 61},
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "ffn_dim": 48, "word_embed_proj_dim": 32},
    **{"sliding_window": 8, "max_window_layers": 2},
}
_OTHER = {
    **dict.fromkeys(("hidden_size", "embed_dim", "d_model", "projection_dim", "out_hidden_size"), 32),
    **dict.fromkeys(("encoder_hidden_size", "embedding_dim"), 32),
    **dict.fromkeys(("intermediate_size", "mlp_dim", "encoder_ffn_dim", "decoder_ffn_dim", "ffn_dim"), 48),
    **dict.fromkeys(("num_hidden_layers", "depth", "encoder_layers", "num_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "num_heads", "encoder_attention_heads"), 4),
    **{"num_key_value_heads": 2, "head_dim": 8, "image_size": 28, "patch_size": 14, "vocab_size": 61},
    **{"deepstack_visual_indexes": [0, 1], "fullatt_block_indexes": [0, 1]},
}
_TOKENS = ("image", "video", "audio", "vision_start", "vision_end", "boi", "eoi", "pad", "bos", "eos")


def small(kind: str, changes: Mapping[str, Any]) -> Any:
    """A small config of ``kind``, its text config changed."""
    of_kind = transformers.CONFIG_MAPPING[kind]
    usual = of_kind()
    text = usual.get_text_config()
    parts: dict[str, Any] = {}
    for name in of_kind.sub_configs:
        part = getattr(usual, name, None)
        if part is None:
            continue
        sizes, fields = (_TEXT if part is text else _OTHER), part.to_dict()
        fields |= {k: v for k, v in sizes.items() if k in fields and isinstance(fields[k], (int, list))}
        if part is text:
            fields |= {"layer_types": (fields.get("layer_types") or [None])[-1:] * 2, **changes}
            fields = {k: v for k, v in fields.items() if v != [None, None]}
        parts[name] = fields
    ids = {f"{each}_token_{end}": 5 for each in _TOKENS for end in ("id", "index")}
    return of_kind(**parts, **{name: value for name, value in ids.items() if hasattr(usual, name)})


def saved(config: Any, folder: Path, dtype: Any = None, seed: int = 0) -> Any:
    """A random model of ``config``, saved by transformers to ``folder`` and read back by it."""
    kind = config.model_type
    tables = (
        modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    )
    names = [table[kind] for table in tables if kind in table]
    names += [f"{type(config).__name__.removesuffix('Config')}ForConditionalGeneration"]
    made = getattr(transformers, names[0])
    torch.manual_seed(seed)
    model = made._from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            # Larger than they are initialised, so that every part counts.
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return made.from_pretrained(folder, attn_implementation="eager", dtype=dtype or torch.float32).eval()


def in_float64(kind: str) -> Any:
    """A context in which models of ``kind`` compute in float64 throughout."""
    of_kind = transformers.CONFIG_MAPPING[kind]
    text = of_kind().get_text_config().model_type.removesuffix("_text")
    names = {f"transformers.models.{each}.modeling_{each}" for each in (kind, text)}
    return float64_in(*map(importlib.import_module, sorted(names)))


def logits(model: Any, tokens: Any) -> Any:
    """Logits of a text without an image or a sound."""
    given = torch.as_tensor(tokens, dtype=torch.long)
    with torch.no_grad():
        try:
            return model(input_ids=given).logits.numpy()
        except TypeError:
            # Some ask for an image; their text model is a whole model of its own.
            return model.language_model(input_ids=given).logits.numpy()
