"""The text model inside multimodal checkpoints: found, renamed, the rest left out and said."""

import contextlib
import importlib
import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

import jmi_models
from jmi.errors import ConfigError
from jmi_models.families.multimodal import KINDS, text_name, text_part
from tests.oracles import grid
from tests.support.checkpoints import assert_same
from tests.support.committed import load, relative

LEFT = {
    "vision_tower.patch.weight": (3, 4),
    "vision_tower.norm.bias": (4,),
    "multi_modal_projector.w": (2, 2),
}
TOLD = r"the text model is read; left out are .*vision_tower \(2 tensors\)"


def inside(name: str, start: str, head: str) -> dict[str, np.ndarray]:
    """Tensors of a committed model as part of another, and those of other parts."""
    own = grid.committed(name).tensors
    renamed = {
        re.sub("^model.", start, key) if key.startswith("model.") else head + key: own[key] for key in own
    }
    before = "model." if head == "" else ""
    return {**renamed, **{before + key: np.ones(shape, np.float32) for key, shape in LEFT.items()}}


def write(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> Path:
    return grid.write_folder(folder, dict(config), tensors)


PLACES = {
    "model.language_model.": "",
    "language_model.model.": "language_model.",
    "model.text_model.": "",
}
CASES = {
    "gemma3": ("gemma3_text/linear", {}),
    "mistral3": ("mistral/window", {}),
    "qwen2_5_vl": ("qwen2/layer_types", {"model_type": "qwen2_5_vl_text"}),
    "qwen3_vl": ("qwen3/tied", {"model_type": "qwen3_vl_text"}),
    "llava": ("llama/longrope_beyond", {}),
    "internvl": ("qwen2/layer_types", {}),
}


@pytest.mark.parametrize("start", PLACES)
@pytest.mark.parametrize("kind", CASES)
def test_the_text_model_is_the_one_that_stands_alone(kind: str, start: str, tmp_path: Path) -> None:
    name, changes = CASES[kind]
    text = {**grid.GRID[name], **changes}
    config = {
        "model_type": kind,
        "text_config": text,
        "vision_config": {"hidden_size": 8},
        "image_token_id": 3,
    }
    config["tie_word_embeddings"] = text.get("tie_word_embeddings", kind == "gemma3")
    folder = write(tmp_path, config, inside(name, start, PLACES[start]))
    with pytest.warns(UserWarning, match=TOLD):
        lm = jmi_models.load(folder)
    assert lm.arch == load(name).arch
    assert_same(lm.params, load(name).params)
    report = jmi_models.inspect(folder)
    assert report.supported
    assert report.model_type == kind
    assert "2 tensors" in report.left_out[0]
    assert "left out:" in str(report)
    assert jmi_models.architecture(folder) == lm.arch


def test_positions_along_several_axes_are_those_of_text(tmp_path: Path) -> None:
    name = "qwen3/tied"
    plain = {k: v for k, v in grid.GRID[name].items() if k not in ("rope_scaling", "rope_parameters")}
    ropes = (
        {"rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}, "rope_theta": 1e6},
        {"rope_scaling": {"rope_type": "default", "mrope_section": [1, 1, 2], "mrope_interleaved": True}},
        {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e6}},
    )
    for rope in ropes:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            part = text_part(
                {"model_type": "qwen3_vl", "text_config": {**plain, "rope_theta": 1e6, **rope}}, {}
            )
            arch = jmi_models.families.described(part.config, {})[1]
        assert arch.positions == jmi_models.families.described({**plain, "rope_theta": 1e6}, {})[1].positions


def test_older_configs_have_the_fields_of_the_text_beside_those_of_the_whole(tmp_path: Path) -> None:
    name = "qwen2/layer_types"
    config = {
        **grid.GRID[name],
        **{"model_type": "qwen2_5_vl", "vision_config": {"depth": 2}, "vision_start_token_id": 4},
    }
    tensors = {**grid.committed(name).tensors, "visual.blocks.0.w": np.ones((2, 2), np.float32)}
    with pytest.warns(UserWarning, match=r"left out are visual \(1 tensors\)"):
        lm = jmi_models.load(write(tmp_path, config, tensors))
    assert_same(lm.params, load(name).params)


def test_saved_again_it_is_a_text_model(tmp_path: Path) -> None:
    name = "qwen3/tied"
    config = {"model_type": "qwen3_vl", "text_config": grid.GRID[name], "tie_word_embeddings": True}
    folder = write(tmp_path / "a", config, inside(name, "model.language_model.", ""))
    with pytest.warns(UserWarning, match=TOLD):
        lm = jmi_models.load(folder)
    jmi_models.save(tmp_path / "b", lm.arch, lm.params, config)
    again = jmi_models.load(tmp_path / "b")
    assert again.arch == lm.arch
    assert_same(again.params, lm.params)


def test_an_adapter_of_the_whole_is_merged_where_it_changes_the_text(tmp_path: Path) -> None:
    name, module = "qwen3/tied", "layers.0.self_attn.q_proj"
    config = {"model_type": "qwen3_vl", "text_config": grid.GRID[name], "tie_word_embeddings": True}
    rng = np.random.default_rng(0)
    shape = grid.committed(name).tensors[f"model.{module}.weight"].shape
    a, b = (rng.standard_normal(s).astype(np.float32) for s in ((2, shape[1]), (shape[0], 2)))
    whole = dict(grid.committed(name).tensors)
    whole[f"model.{module}.weight"] = whole[f"model.{module}.weight"] + 2 * b @ a
    for start in ("model.language_model", "language_model.model"):
        folder = write(tmp_path / start, config, inside(name, "model.language_model.", ""))
        adapter = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}
        (folder / "adapter_config.json").write_text(json.dumps(adapter))
        held = {f"{start}.{module}.lora_A.weight": a, f"{start}.{module}.lora_B.weight": b}
        held |= {"model.vision_tower.x.lora_A.weight": a, "model.vision_tower.x.lora_B.weight": b}
        save_file({f"base_model.model.{k}": v for k, v in held.items()}, folder / "adapter_model.safetensors")
        with pytest.warns(UserWarning, match="left out") as told:
            lm = jmi_models.load(folder)
        assert "into 1 matrices (1 changes of other parts are left out)" in str(told[1].message)
        got = np.asarray(lm.params["blocks"]["attn"]["W_Q"][0]).reshape(shape[1], shape[0]).T
        np.testing.assert_allclose(got, whole[f"model.{module}.weight"], atol=2e-6)


def test_an_adapter_of_the_whole_goes_into_the_text_model(tmp_path: Path) -> None:
    module, lm = "model.language_model.layers.0.mlp.down_proj", load("llama/longrope_beyond")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 1, "lora_alpha": 1}))
    ones = {"A": np.ones((1, lm.arch.d_mlp), np.float32), "B": np.ones((lm.arch.d_model, 1), np.float32)}
    held = {f"base_model.model.{module}.lora_{x}.weight": value for x, value in ones.items()}
    save_file(held, tmp_path / "adapter_model.safetensors")
    tuned, tokens = jmi_models.adapt(lm, tmp_path), grid.committed("llama/longrope_beyond").tokens
    out = tuned.run(tokens, capture=["blocks.0.mlp.hook_post", "blocks.0.mlp.hook_out.hook_adapter"])
    want = np.asarray(out["blocks.0.mlp.hook_post"]).sum(-1, keepdims=True)
    np.testing.assert_allclose(out["blocks.0.mlp.hook_out.hook_adapter"], want + np.zeros(24), atol=1e-4)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "paligemma", "text_config": {"model_type": "gemma"}}, "reads a prompt in both"),
        (
            {"model_type": "of_tomorrow", "text_config": {"model_type": "llama"}},
            "how it is used there is not",
        ),
        (
            {"model_type": "llava", "text_config": {"model_type": "mpt"}},
            "'mpt', which is not supported inside",
        ),
        ({"model_type": "llava", "text_config": {"model_type": ["llama"]}}, "which is not supported inside"),
        ({"model_type": "llava", "text_config": "llama"}, "'text_config' must be an object"),
        ({"model_type": "llava"}, "'text_config' must be an object"),
        (
            {"model_type": "gemma3", "text_config": {"use_bidirectional_attention": True}},
            "does not run alone",
        ),
        ({"model_type": "llava", "text_config": {"is_encoder_decoder": True}}, "does not run alone"),
        ({"model_type": "voxtral", "text_config": {"model_type": "llama"}}, "'hidden_size' is missing"),
        ({"model_type": "llava", "text_config": {"hidden_size": "x"}}, "'hidden_size' must be"),
    ],
)
def test_what_does_not_run_alone_is_refused(config: Any, words: str, tmp_path: Path) -> None:
    folder = write(tmp_path, config, {"model.language_model.layers.0.w": np.ones(2, np.float32)})
    with pytest.raises(ConfigError, match=words):
        jmi_models.load(folder)
    assert not jmi_models.inspect(folder).supported


def test_names_of_every_place() -> None:
    assert text_name("language_model.lm_head.weight") == "lm_head.weight"
    assert text_name("model.language_model.norm.weight") == "model.norm.weight"
    assert text_name("model.visual.blocks.0.weight") is None
    assert text_name("visual.blocks.0.weight") is None


IN_FLOAT64 = ("gemma3", "mistral3", "qwen2_5_vl", "qwen3_vl", "llava", "idefics3")


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "dtype"), [*((k, "float32") for k in KINDS), *((k, "float64") for k in IN_FLOAT64)]
)
def test_logits_of_texts_are_those_of_transformers(kind: str, dtype: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="the live oracle needs torch")
    pytest.importorskip("transformers", reason="the live oracle needs transformers")
    oracle = importlib.import_module("tests.oracles.multimodal")
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
    changes = {"rope_parameters": rope} if kind.startswith("qwen") and "vl" in kind else {}
    tokens = np.random.default_rng(0).integers(6, 61, (2, 12)).astype(np.int32)
    double = dtype == "float64"
    with oracle.in_float64(kind) if double else contextlib.nullcontext():
        model = oracle.saved(oracle.small(kind, changes), tmp_path, getattr(torch, dtype))
        want = oracle.logits(model, tokens)
    assert want.dtype == dtype
    with jax.enable_x64(double):
        got = np.asarray(jmi_models.load(tmp_path, dtype=dtype).run(tokens).logits)
    assert relative(got, want) <= (1e-10 if double else 2e-5)
    assert np.abs(want).max() > 0.1


@pytest.mark.oracle
@pytest.mark.parametrize("kind", [kind for kind, known in KINDS.items() if known.sizes])
def test_what_configs_leave_out_is_what_the_classes_take(kind: str) -> None:
    transformers = pytest.importorskip("transformers", reason="the live oracle needs transformers")
    sizes = (
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "vocab_size",
        "max_position_embeddings",
    )
    of_kind = transformers.CONFIG_MAPPING[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        text = of_kind(text_config={"model_type": KINDS[kind].text}).get_text_config()
        part = text_part({"model_type": kind, "text_config": {"model_type": KINDS[kind].text}}, {})
        arch: Any = jmi_models.families.described(part.config, {})[1]
    theirs = {name: getattr(text, name, None) for name in sizes}
    ours = (arch.d_model, arch.n_layers, arch.n_heads, arch.d_vocab, arch.n_ctx)
    assert dict(zip(sizes, ours, strict=True)) == theirs
    assert arch.n_kv_heads == (getattr(text, "num_key_value_heads", None) or arch.n_heads)
    assert arch.d_mlp == getattr(text, "intermediate_size", None) or getattr(text, "ffn_dim", None)
    if KINDS[kind].tied is not None:
        assert KINDS[kind].tied == of_kind().tie_word_embeddings
    theta = getattr(text, "rope_parameters", None) or {}
    if "rope_theta" in theta:
        assert {rope.theta for rope in arch.positions.ropes if rope} == {theta["rope_theta"]}
