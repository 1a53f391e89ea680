"""Broken and hostile adapters end in one clear error."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.models.test_adapters import FIRST, PLAIN, refused, tensors, write

HOSTILE_CONFIGS: tuple[Any, ...] = (
    *("{", "[]", "null", '"LORA"', "{}", "[" * 9999, '{"peft_type": "LORA"' + ',"a":' * 9999),
    *({"peft_type": kind} for kind in ("", 1, ["LORA"], {}, "LOHA", "ADALORA", "PROMPT_TUNING", "lora")),
    *({"r": rank} for rank in (0, -1, 1.5, True, [2], {}, "two", 1e30, 10**40)),
    *({"lora_alpha": alpha} for alpha in (0, True, [], "6", 1e30)),
    *({"use_rslora": value} for value in (1, "true", [1])),
    *({"use_dora": True}, {"use_bdlora": {}, "alora_invocation_tokens": [1]}, {"bias": "lora_only"}),
    *({"modules_to_save": value} for value in ("lm_head", [1], [""], {"a": 1}, ["lm_head"])),
    *({"rank_pattern": value} for value in ([1], {"q_proj": "2"}, {"q_proj": 0}, {"(": 1}, {".*": 2})),
    *({"alpha_pattern": value} for value in ("x", {"q_proj": None}, {"x" * 9999 + "(": 1})),
    {"target_parameters": ["mlp.experts.gate_up_proj"]},
    {"base_model_name_or_path": "x", "exotic": {"a": [1] * 9999}},
)


@pytest.mark.parametrize("which", range(len(HOSTILE_CONFIGS)))
def test_hostile_configs_end_in_one_clear_error(which: int, tmp_path: Path) -> None:
    given = HOSTILE_CONFIGS[which]
    folder = write(tmp_path, "llama/longrope_beyond")
    if isinstance(given, str):
        (folder / "adapter_config.json").write_text(given)
    else:
        (folder / "adapter_config.json").write_text(json.dumps({**PLAIN, **given}))
    refused(folder, "adapter", longest=600)


HOSTILE_FILES: Mapping[str, Callable[[dict[str, np.ndarray]], Any]] = {
    "nothing": lambda held: {},
    "no A": lambda held: {k: v for k, v in held.items() if "lora_A" not in k},
    "three axes": lambda held: {**held, FIRST + "A.weight": np.ones((2, 24, 1), np.float32)},
    "integers": lambda held: {**held, FIRST + "B.weight": np.ones((32, 2), np.int32)},
    "of no module": lambda held: {**held, "base_model.model.lora_A.weight": np.ones((2, 2), np.float32)},
    "a name with commands": lambda held: {**held, "\x1b[2Jlora_A.weight": np.ones((2, 2), np.float32)},
    "DoRA": lambda held: {**held, FIRST + "magnitude_vector": np.ones(32, np.float32)},
    "an embedding's A": lambda held: {**held, FIRST + "embedding_A": np.ones((2, 24), np.float32)},
    "rank 0": lambda held: {FIRST + "A.weight": np.ones((0, 24)), FIRST + "B.weight": np.ones((32, 0))},
    "a bias": lambda held: {**held, FIRST[:-6] + ".bias": np.ones(32, np.float32)},
    "a whole matrix": lambda held: {**held, FIRST[:-6] + ".weight": np.ones((32, 24), np.float32)},
    "infinite": lambda held: {k: np.full_like(v, np.inf) for k, v in held.items()},
    "overflowing": lambda held: {k: np.full_like(v, 1e30) for k, v in held.items()},
}


@pytest.mark.parametrize("which", HOSTILE_FILES)
def test_hostile_files_end_in_one_clear_error(which: str, tmp_path: Path) -> None:
    held = HOSTILE_FILES[which](tensors("llama/longrope_beyond"))
    refused(write(tmp_path, "llama/longrope_beyond", held), "adapter|weights are not finite", longest=600)
