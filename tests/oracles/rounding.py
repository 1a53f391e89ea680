"""How far models in bfloat16 are from the float32 truth: what is measured, and what was recorded; no torch.

Of every family one config of the grid, in two ways gentler than there, so that the measure is of rounding
and not of luck: four times as wide (over eight numbers a norm may divide by almost nothing), and every
expert is chosen (a near tie decides otherwise in either library, which is as often for the better).
Weights are rounded to bfloat16 first; the truth is Hugging Face's float32 run of them.
"""

import functools
import json
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from tests.oracles import grid
from tests.oracles.grid import Config
from tests.support.committed import put_together

BAR = 1.03
"""The error of jmi is at most so many times that of torch."""

PROMPTS, SEEDS = 32, 3
TABLE = grid.DATA / "bfloat16.json"
TRUTH = grid.DATA / "bfloat16.npz"

HELD = ("phi", "cohere", "bloom", "gemma2", "gpt_oss")
"""Families whose truth is committed, at the last token of the prompts with the weights of seed 0."""

_INSTEAD = {"phi3": "phi3/grouped"}
"""Where the first committed config has a list as long as a head is wide."""

_WIDTHS = ("hidden_size", "n_embd", "word_embed_proj_dim")
_EXPERTS = ("num_experts", "num_local_experts")


def config(family: str) -> Config:
    """What is measured of a family: a config of the grid, wider and with every expert chosen."""
    committed = next(name for name in grid.COMMITTED if name.startswith(f"{family}/"))
    name = _INSTEAD.get(family, committed)
    found = dict(grid.GRID[name])
    found |= {key: 4 * found[key] for key in _WIDTHS if key in found}
    experts = [found[key] for key in _EXPERTS if key in found]
    return found | ({"num_experts_per_tok": experts[0]} if experts else {})


def tensors(family: str, shapes: Mapping[str, Any], seed: int) -> dict[str, np.ndarray]:
    """Float32 weights that bfloat16 holds."""
    made = grid.tensors(shapes, family, seed)
    return {name: w.astype(ml_dtypes.bfloat16).astype(np.float32) for name, w in made.items()}


def tokens(family: str, seed: int) -> np.ndarray:
    """int32 ``[PROMPTS, grid.LENGTH]``."""
    rng = np.random.default_rng([11, seed])
    return rng.integers(0, config(family)["vocab_size"], (PROMPTS, grid.LENGTH)).astype(np.int32)


def of_jmi(config: Config, tensors: Mapping[str, np.ndarray], tokens: np.ndarray, **kwargs: Any) -> Any:
    """Logits of jmi in bfloat16; ``kwargs`` go to ``run``."""
    return np.asarray(put_together(config, tensors, "bfloat16").run(tokens, **kwargs).logits)


def rms(got: Any, want: np.ndarray) -> float:
    """Root of the mean square of what ``got`` is off."""
    got = np.asarray(got).astype(np.float64)
    assert got.shape == want.shape
    return float(np.sqrt(np.mean(np.square(got - want))))


def ratio(errors: Mapping[str, list[float]]) -> float:
    """The error of jmi over that of torch, of all seeds together."""
    ours, theirs = (np.sqrt(np.mean(np.square(errors[who]))) for who in ("jmi", "torch"))
    return float(ours / theirs)


@functools.cache
def table() -> dict[str, Any]:
    """Family -> ``torch`` and ``jmi``: RMS error of each seed; and ``versions``."""
    return json.loads(TABLE.read_text())


@functools.cache
def truth(family: str) -> tuple[dict[str, Any], np.ndarray, float]:
    """Shapes of the checkpoint, float32 logits ``[PROMPTS, vocab]`` and torch's RMS error on them."""
    with np.load(TRUTH, allow_pickle=False) as file:
        shapes = json.loads(str(file[f"{family}/shapes"]))
        return shapes, file[f"{family}/logits"], float(file[f"{family}/torch"])
