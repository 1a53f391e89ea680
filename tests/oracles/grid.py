"""Tiny random models of every family as plain data: configs, tensors, folders and committed outputs.

An entry of `GRID` is a ``config.json`` as Hugging Face writes or wrote them. The tensors follow from
their names by numpy alone, so a test without torch runs the very models the oracle ran.
"""

import dataclasses
import functools
import json
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from tests.oracles.families import coheres, gemmas, kin_of_llama, llama, mixtures, older
from tests.oracles.families.base import Config, Family

BATCH, LENGTH = 2, 10
DATA = Path(__file__).parent.parent / "data"

FAMILIES: Mapping[str, Family] = {
    "llama": llama.LLAMA,
    "mistral": kin_of_llama.MISTRAL,
    "qwen2": kin_of_llama.QWEN2,
    "qwen3": kin_of_llama.QWEN3,
    "gemma": gemmas.GEMMA,
    "gemma2": gemmas.GEMMA2,
    "gemma3_text": gemmas.GEMMA3_TEXT,
    "phi3": kin_of_llama.PHI3,
    "starcoder2": kin_of_llama.STARCODER2,
    "gpt2": older.GPT2,
    "gpt_neox": older.GPT_NEOX,
    "gptj": older.GPTJ,
    "opt": older.OPT,
    "olmo": kin_of_llama.OLMO,
    "olmo2": kin_of_llama.OLMO2,
    "phi": older.PHI,
    "stablelm": older.STABLELM,
    "falcon": older.FALCON,
    "cohere": coheres.COHERE,
    "cohere2": coheres.COHERE2,
    "granite": kin_of_llama.GRANITE,
    "smollm3": kin_of_llama.SMOLLM3,
    "bloom": older.BLOOM,
    "mixtral": mixtures.MIXTRAL,
    "qwen2_moe": mixtures.QWEN2_MOE,
    "qwen3_moe": mixtures.QWEN3_MOE,
    "olmoe": mixtures.OLMOE,
    "gpt_oss": mixtures.GPT_OSS,
}
"""Family (``model_type``) -> variant -> config.json."""

GRID: dict[str, Config] = {
    f"{family}/{variant}": config
    for family, variants in FAMILIES.items()
    for variant, config in variants.items()
}
"""``family/variant`` -> config.json."""

COMMITTED: tuple[str, ...] = (
    "llama/longrope_beyond",
    "mistral/window",
    "qwen2/layer_types",
    "qwen3/tied",
    "gemma/multi_query",
    "gemma2/capped",
    "gemma3_text/linear",
    "phi3/longrope_beyond",
    "starcoder2/window_tied",
    "gpt2/plain",
    "gpt_neox/parallel",
    "gpt_neox/sequential",
    "gptj/plain",
    "opt/pre_norm",
    "opt/post_norm",
    "olmo/clipped",
    "olmo2/grouped",
    "phi/qk_norm_grouped",
    "stablelm/parallel",
    "falcon/new_decoder",
    "falcon/alibi",
    "cohere/qk_norm_untied",
    "cohere2/pattern",
    "granite/multipliers",
    "smollm3/tied",
    "bloom/six_heads_untied",
    "mixtral/full",
    "qwen2_moe/shared",
    "qwen3_moe/normalised",
    "olmoe/clipped",
    "gpt_oss/alternating",
)
"""Configs whose outputs are committed, for runs without torch."""


def tokens(config: Config) -> np.ndarray:
    """The fixed prompt, int32 ``[BATCH, LENGTH]``."""
    rng = np.random.default_rng(7)
    return rng.integers(0, config["vocab_size"], (BATCH, LENGTH)).astype(np.int32)


_GAIN_OF_ONE_PLUS_W = ("gemma", "gemma2", "gemma3_text")
_EMBEDDING = re.compile(r"(embed_tokens|embed_positions|embed_in|word_embeddings|wte|wpe)\.weight$")
_ROUTER = re.compile(r"(\.gate|\.router|shared_expert_gate)\.weight$")
_SHARP = re.compile(r"(q_proj|k_proj|qkv_proj|c_attn|query_key_value|lm_head|embed_out)\.weight$")
_INPUTS_FIRST = re.compile(r"\bh\.\d+\.(attn|mlp)\.c_|mlp\.experts\.\w+_proj$")
"""Matrices stored [inputs, outputs]: Conv1D of GPT-2, the stacked experts of gpt-oss."""
_EXPERTS_UP = re.compile(r"mlp\.experts\.gate_up_proj$")
"""Three times as large, so that the clamps of gpt-oss bite."""


def weight(name: str, shape: tuple[int, ...], family: str = "", seed: int = 0) -> np.ndarray:
    """The tensor called ``name``, float32, scaled so that attention, routing and logits are lively."""
    values = np.random.default_rng([seed, zlib.crc32(name.encode())]).standard_normal(shape)
    if name.endswith("bias"):
        return (0.3 * values).astype(np.float32)
    if "norm" in name or re.search(r"\bln_", name):
        return ((family not in _GAIN_OF_ONE_PLUS_W) + 0.3 * values).astype(np.float32)
    if name.endswith("sinks"):
        return values.astype(np.float32)
    if _EMBEDDING.search(name):
        return (0.7 * values).astype(np.float32)
    return (_factor(name) * values / np.sqrt(_inputs(name, shape))).astype(np.float32)


def _factor(name: str) -> float:
    factors = {_SHARP: 1.5, _ROUTER: 2.0, _EXPERTS_UP: 3.0}
    return next((factor for pattern, factor in factors.items() if pattern.search(name)), 1.0)


def _inputs(name: str, shape: tuple[int, ...]) -> int:
    return shape[-2] if _INPUTS_FIRST.search(name) else shape[-1]


def tensors(shapes: Mapping[str, tuple[int, ...]], family: str, seed: int = 0) -> dict[str, np.ndarray]:
    """Every tensor of a checkpoint of ``family`` with these names and shapes."""
    return {name: weight(name, tuple(shape), family, seed) for name, shape in shapes.items()}


def write_folder(folder: Path, config: Config, weights: Mapping[str, np.ndarray]) -> Path:
    """A model folder with ``config`` and ``weights``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(dict(weights), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@dataclasses.dataclass(frozen=True)
class Committed:
    """What ``tests/data/<family>.npz`` holds of one config.

    Attributes:
      config: config.json.
      tensors: name -> float32, of every tensor of the checkpoint.
      tokens: int32 ``[BATCH, LENGTH]``.
      sites: site (those inside blocks stacked over layers) -> float64, as Hugging Face computes it.
    """

    config: Config
    tensors: dict[str, np.ndarray]
    tokens: np.ndarray
    sites: dict[str, np.ndarray]


@functools.cache
def committed(name: str) -> Committed:
    """The committed outputs of config ``name`` (``family/variant``)."""
    family, variant = name.split("/")
    with np.load(DATA / f"{family}.npz", allow_pickle=False) as file:
        held = {k.removeprefix(f"{variant}/"): file[k] for k in file.files if k.startswith(f"{variant}/")}
    sites = {key.removeprefix("sites/"): value for key, value in held.items() if key.startswith("sites/")}
    sites |= {site: sites[twin] for site, twin in _json(held["twins"]).items()}
    made = tensors(_json(held["shapes"]), family)
    return Committed(_json(held["config"]), made, held["tokens"], sites)


def _json(array: np.ndarray) -> Any:
    return json.loads(str(array))
