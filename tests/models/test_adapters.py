"""LoRA adapters: merged as by hand and as in peft, left out on request, or refused in one sentence."""

import json
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

import jmi_models
from jmi.errors import CheckpointError, ConfigError, JmiError
from tests.oracles import grid
from tests.support.checkpoints import assert_same
from tests.support.committed import put_together

PLAIN = {"peft_type": "LORA", "base_model_name_or_path": "someone/model", "r": 2, "lora_alpha": 6}
MODELS: dict[str, tuple[str, ...]] = {
    # One matrix, one that is a part of a fused one, one stored inputs first.
    "llama/longrope_beyond": ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"),
    "phi3/longrope_beyond": ("model.layers.1.self_attn.qkv_proj", "model.layers.0.mlp.gate_up_proj"),
    "gpt2/plain": ("transformer.h.0.attn.c_attn", "transformer.h.1.mlp.c_proj"),
    "qwen3/tied": ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"),
}

NO_RANKS: Mapping[str, int] = {}


def inputs_first(name: str) -> bool:
    return name.startswith("gpt2")


def pair(name: str, module: str, rank: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """A ``[r, inputs]`` and B ``[outputs, r]`` for a module of a model."""
    shape = grid.committed(name).tensors[f"{module}.weight"].shape
    outputs, inputs = shape[::-1] if inputs_first(name) else shape
    rng = np.random.default_rng([len(module), rank])
    a, b = rng.standard_normal((rank, inputs)), rng.standard_normal((outputs, rank))
    return a.astype(np.float32), b.astype(np.float32)


def tensors(name: str, ranks: Mapping[str, int] = NO_RANKS) -> dict[str, np.ndarray]:
    out = {}
    for module in MODELS[name]:
        a, b = pair(name, module, ranks.get(module, 2))
        out |= {f"base_model.model.{module}.lora_A.weight": a, f"base_model.model.{module}.lora_B.weight": b}
    return out


def write(folder: Path, name: str, held: Mapping[str, np.ndarray] | None = None, **changes: Any) -> Path:
    """A whole model with an adapter beside it."""
    grid.write_folder(folder, grid.GRID[name], grid.committed(name).tensors)
    config = {**PLAIN, "fan_in_fan_out": inputs_first(name), **changes}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(dict(tensors(name) if held is None else held), folder / "adapter_model.safetensors")
    return folder


def changed(
    name: str, scales: Mapping[str, float], ranks: Mapping[str, int] = NO_RANKS, dtype: str = "float32"
) -> dict[str, np.ndarray]:
    """Tensors of the model whose matrices were changed in float64."""
    weights = dict(grid.committed(name).tensors)
    for module in MODELS[name]:
        a, b = (part.astype(np.float64) for part in pair(name, module, ranks.get(module, 2)))
        change = scales[module] * (b @ a)
        change = change.T if inputs_first(name) else change
        weights[f"{module}.weight"] = (weights[f"{module}.weight"] + change).astype(dtype)
    return weights


def by_hand(
    name: str, scales: Mapping[str, float], ranks: Mapping[str, int] = NO_RANKS, dtype: str = "float32"
) -> Any:
    """Parameters of that model."""
    return put_together(grid.GRID[name], changed(name, scales, ranks, dtype), dtype).params


def close(got: Any, want: Any) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=2e-6), got, want)


def merged(folder: Path, words: str = "", **kwargs: Any) -> Any:
    with pytest.warns(
        UserWarning, match=f"LoRA adapter in it is merged into 2 matrices{words}; adapter=False leaves"
    ):
        return jmi_models.load(folder, **kwargs)


@pytest.mark.parametrize("name", MODELS)
def test_an_adapter_beside_whole_weights_is_merged_and_said(name: str, tmp_path: Path) -> None:
    lm = merged(write(tmp_path / "with", name))
    close(lm.params, by_hand(name, dict.fromkeys(MODELS[name], 3.0)))
    without = jmi_models.load(tmp_path / "with", adapter=False)
    plain = jmi_models.load(grid.write_folder(tmp_path / "x", grid.GRID[name], grid.committed(name).tensors))
    assert_same(without.params, plain.params)
    assert len({lm.identity(), without.identity(), plain.identity()}) == 3


def test_ranks_and_alphas_of_modules_and_the_stabilised_scale(tmp_path: Path) -> None:
    name = "llama/longrope_beyond"
    first, second = MODELS[name]
    held = tensors(name, {second: 3})
    changes = {"rank_pattern": {"down_proj": 3}, "alpha_pattern": {r"layers\.0\.self_attn\.q_proj": 5}}
    lm = merged(write(tmp_path / "one", name, held, **changes))
    close(lm.params, by_hand(name, {first: 5 / 2, second: 6 / 3}, {second: 3}))
    lm = merged(write(tmp_path / "two", name, use_rslora=True))
    close(lm.params, by_hand(name, dict.fromkeys((first, second), 6 / 2**0.5)))


def test_a_model_saved_without_its_head_is_changed_as_well(tmp_path: Path) -> None:
    name = "gpt2/plain"
    folder = write(tmp_path / "with", name)
    bare = {k.removeprefix("transformer."): v for k, v in grid.committed(name).tensors.items()}
    save_file(bare, folder / "model.safetensors")
    close(merged(folder).params, by_hand(name, dict.fromkeys(MODELS[name], 3.0)))


def test_an_adapter_alone_is_loaded_with_a_local_base_or_names_it(tmp_path: Path) -> None:
    name = "llama/longrope_beyond"
    folder = write(tmp_path / "whole", name)
    alone = tmp_path / "alone"
    alone.mkdir()
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.move(folder / file, alone / file)
    with pytest.raises(ConfigError, match="an adapter alone, of the model 'someone/model': download"):
        jmi_models.load(alone)
    (alone / "adapter_config.json").write_text(json.dumps({**PLAIN, "base_model_name_or_path": str(folder)}))
    lm = merged(alone)
    close(lm.params, by_hand(name, dict.fromkeys(MODELS[name], 3.0)))
    assert " + " in str(lm.identity())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"use_dora": True}, "use_dora=True: only plain LoRA is read"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save names lm_head, but .* holds no tensor of it"),
        ({"bias": "all"}, "bias='all'"),
        ({"lora_bias": True}, "lora_bias"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"of_tomorrow": 1}, "of_tomorrow=1"),
        ({"peft_type": "IA3"}, "of kind 'IA3'"),
        ({"peft_type": None}, "of kind None"),
        ({"r": 3}, "their rank is not 3"),
        ({"r": "2"}, "'r' must be a positive number"),
        ({"lora_alpha": -1}, "'lora_alpha' must be"),
        ({"use_rslora": "yes"}, "'use_rslora' must be true or false"),
        ({"rank_pattern": ["x"]}, "'rank_pattern' must be an object"),
        ({"rank_pattern": {"(a+)+b": 2}}, "not a plain name"),
        ({"alpha_pattern": {"\\": 2}}, "is no pattern"),
        ({"fan_in_fan_out": True}, r"q_proj.weight by \[24, 32\], but it is \[32, 24\]"),
    ],
)
def test_an_adapter_of_another_kind_is_refused(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    refused(write(tmp_path, "llama/longrope_beyond", **changes), words)


FIRST = "base_model.model.model.layers.0.self_attn.q_proj.lora_"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({FIRST + "B.weight": None}, "has no lora_B"),
        ({FIRST + "magnitude_vector": np.ones(4, np.float32)}, "magnitude_vector .* not a matrix A or B"),
        ({"model.norm.weight": np.ones(4, np.float32)}, "not a matrix A or B"),
        ({FIRST + "A.weight": np.ones((2, 3), np.float32)}, r"by \[\d+, 3\], but it is"),
        ({FIRST + "A.weight": np.ones((2, 3), np.int8)}, "I8 is not a matrix"),
        ({FIRST + "A.weight": np.ones((5, 24), np.float32)}, "their rank is not 2"),
        (
            {f"base_model.model.x.lora_{x}.weight": np.ones((2, 2), np.float32) for x in "AB"},
            "no tensor x.wei",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_refused(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    held = {k: v for k, v in {**tensors("llama/longrope_beyond"), **changes}.items() if v is not None}
    refused(write(tmp_path, "llama/longrope_beyond", held), words)


def test_absent_damaged_and_not_finite_files_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path, "llama/longrope_beyond")
    held = tensors("llama/longrope_beyond")
    held[FIRST + "A.weight"][0, 0] = np.nan
    save_file(held, folder / "adapter_model.safetensors")
    refused(folder, "not finite.*: model.layers.0.self_attn.q_proj.weight")
    (folder / "adapter_model.safetensors").write_bytes(b"short")
    refused(folder, "adapter_model.safetensors: not a readable safetensors file")
    (folder / "adapter_model.safetensors").unlink()
    refused(folder, "adapter_model.safetensors is not")
    (folder / "adapter_config.json").write_text("[" * 100_000)
    refused(folder, "adapter_config.json is nested too deeply")
    assert jmi_models.load(folder, adapter=False)


def refused(folder: Path, words: str, longest: int = 2000) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(JmiError, match=words) as caught:
            jmi_models.load(folder)
    assert isinstance(caught.value, (ConfigError, CheckpointError))
    assert len(str(caught.value)) <= longest
    assert str(caught.value).replace("\n", "").isprintable()
