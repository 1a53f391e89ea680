"""RWKV-6 and RWKV-7 against the `rwkv` package, and against published weights with recorded outputs."""

import functools
import importlib
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

import jmi_models
from jmi.errors import ArgumentError, CheckpointError, ConfigError
from tests.support.rwkv_data import recorded, weights
from tests.support.tolerances import BARS, assert_agree
from tests.support.torch_files import write_state_dict

SHARED = Path(os.environ.get("JMI_SHARED") or Path(__file__).parents[3] / "shared")
TINY = SHARED / "models" / "rwkv7-tiny-834k"
VERSIONS = [pytest.param(v, marks=pytest.mark.xdist_group(f"rwkv{v}")) for v in (6, 7)]
PROMPTS = ("a", "b")

published = pytest.mark.skipif(
    not (TINY / "model.safetensors").is_file(),
    reason="the weights of rwkv7-tiny-834k are not here; set JMI_SHARED to the folder that holds models/",
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Folders that hold nothing but a file of tensors in the original names."""
    found = {}
    for version in (6, 7):
        found[version] = tmp_path_factory.mktemp(f"rwkv{version}")
        save_file(weights(version), found[version] / f"RWKV-x0{version}0-tiny.safetensors")
    return found


def load(folder: Path, dtype: str = "float32", **kwargs: Any) -> Any:
    with jax.enable_x64(dtype == "float64"):
        return jmi_models.load(folder, dtype=dtype, **kwargs)


def after_the_layers(version: int, stream: np.ndarray) -> dict[str, np.ndarray]:
    """Of the final stream ``[s, d]`` of the package: each point after the layers, in float64."""
    names = ("ln_out.weight", "ln_out.bias", "head.weight")
    gain, bias, head = (weights(version)[name].astype(float) for name in names)
    normalised = (stream - stream.mean(-1, keepdims=True)) / np.sqrt(stream.var(-1, keepdims=True) + 1e-5)
    final = normalised * gain + bias
    return {
        "ln_final.hook_normalized_f64": normalised,
        "hook_final_norm_f64": final,
        "unembed.hook_in_f64": final,
        "unembed.hook_out_f64": final @ head.T,
    }


@pytest.mark.parametrize("dtype", BARS["oracle"])
@pytest.mark.parametrize("version", VERSIONS)
def test_logits_stream_and_state_equal_the_package(version: int, dtype: str, folders: Any) -> None:
    lm, z = load(folders[version], dtype), recorded(version)
    with jax.enable_x64(dtype == "float64"):
        for prompt in PROMPTS:
            want = {key.removeprefix(f"{prompt}/"): z[key] for key in z if key.startswith(f"{prompt}/")}
            resid = ["blocks.*.hook_resid_pre", "blocks.*.hook_resid_post"]
            after = ["ln_final.hook_normalized", "hook_final_norm", "unembed.hook_in", "unembed.hook_out"]
            out = lm.run(want["tokens"].astype(np.int32)[None], capture=[*resid, *after], memory=True)
            more = lm.run(want["continued_tokens"].astype(np.int32)[None], memory=out.memory)
            stream = np.concatenate([out.stack("hook_resid_pre")[:1], out.stack("hook_resid_post")])
            found = {
                **{name: out[name][0] for name in after},
                "logits": out.logits[0],
                "resid": np.moveaxis(stream[:, 0], 0, 1),
                "state": out.memory.parts["wkv"][:, 0],
                "att_shift": out.memory.parts["shift"][:, 0],
                "ffn_shift": out.memory.parts["mlp_shift"][:, 0],
                "continued_logits": more.logits[0],
            }
            want |= after_the_layers(version, want["resid_f64"][:, -1])
            for name, value in found.items():
                package, exact = want.get(f"{name}_package_f32"), want.get(f"{name}_f64")
                assert package is not None or exact is not None, name
                if exact is not None:
                    assert_agree({name: value}, {name: exact.astype(dtype)}, "oracle")
                if package is not None:
                    assert_agree({name: np.asarray(value, np.float32)}, {name: package}, "oracle")


@pytest.mark.oracle
@pytest.mark.parametrize("version", VERSIONS)
def test_recorded_values_are_those_of_the_package(version: int) -> None:
    pytest.importorskip("torch", reason="the live oracle needs torch")
    pytest.importorskip("rwkv", reason="the live oracle needs the rwkv package")
    live, z = importlib.import_module("tests.oracles.rwkv_package").record(version), recorded(version)
    assert set(live) == set(z)
    for key, value in live.items():
        assert_agree({key: value}, {key: z[key]}, "oracle")


@pytest.mark.parametrize("version", VERSIONS)
def test_a_pickled_file_and_a_saved_folder_hold_the_same_model(
    version: int, folders: Any, tmp_path: Path
) -> None:
    lm = load(folders[version])
    (tmp_path / "pth").mkdir()
    write_state_dict(tmp_path / "pth" / "RWKV-tiny.pth", weights(version))
    with pytest.raises(CheckpointError, match="pytorch_bin=True"):
        load(tmp_path / "pth")
    jax.tree.map(np.testing.assert_array_equal, lm.params, load(tmp_path / "pth", pytorch_bin=True).params)

    ranks = {f"{name.removeprefix('rank_')}_low_rank_dim": size for name, size in lm.arch.ranks}
    config = {
        "model_type": f"rwkv{version}",
        "hidden_size": lm.arch.d_model,
        "num_hidden_layers": lm.arch.n_layers,
        "vocab_size": lm.arch.d_vocab,
        "intermediate_size": lm.arch.d_mlp,
        "head_dim" if version == 7 else "head_size": lm.arch.d_head,
        **(ranks if version == 7 else {}),
    }
    if version == 6:
        with pytest.raises(ArgumentError, match="another architecture"):
            jmi_models.save(tmp_path / "hf", lm.arch, lm.params, {**config, "head_size": 8})
    jmi_models.save(tmp_path / "hf", lm.arch, lm.params, config)
    again = load(tmp_path / "hf")
    assert again.arch == lm.arch
    jax.tree.map(np.testing.assert_array_equal, again.params, lm.params)


def test_what_is_no_rwkv_checkpoint_says_why(tmp_path: Path) -> None:
    tensors = weights(7)
    for wrong, message in (
        ({"blocks.0.att.r_k": None}, "neither version 6 nor 7"),
        ({"blocks.1.att.w1": None, "blocks.2.ffn.key.weight": np.zeros((3, 128), np.float32)}, "2 problems"),
        ({"blocks.1.att.more": np.zeros(3, np.float32)}, "surplus: blocks.1.att.more"),
    ):
        held = {k: v for k, v in {**tensors, **wrong}.items() if v is not None}
        save_file(held, tmp_path / "model.safetensors")
        with pytest.raises(CheckpointError, match=message):
            load(tmp_path)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "rwkv7", "num_hidden_layers": 4}')
    with pytest.raises(ConfigError, match="num_hidden_layers=4"):
        load(tmp_path)


@functools.cache
def tiny(naming: str) -> Any:
    return load(TINY if naming == "original" else TINY / "hf")


@published
@pytest.mark.parametrize("naming", ["original", "fla"])
def test_published_weights_give_the_published_logits(naming: str) -> None:
    lm = tiny(naming)
    tokens = np.load(TINY / "expected_logits_rwkvcpp_tokens.npy").astype(np.int32)
    want = np.load(TINY / "expected_logits_rwkvcpp.npy")
    assert_agree(lm.run(tokens[None]).logits[0, -1], want.astype(np.float32), "oracle")


@published
def test_both_namings_are_one_model() -> None:
    jax.tree.map(np.testing.assert_array_equal, tiny("original").params, tiny("fla").params)
    assert tiny("original").arch == tiny("fla").arch


@published
@pytest.mark.parametrize("text", ["story", "shakespeare"])
def test_published_weights_give_the_recorded_logits_stream_and_state(text: str) -> None:
    lm = tiny("original")
    with np.load(TINY / "reference.npz") as logits, np.load(TINY / "reference_internals.npz") as inside:
        tokens = logits[f"{text}.tokens"].astype(np.int32)[None]
        resid = ["blocks.*.hook_resid_pre", "blocks.*.hook_resid_post"]
        out = lm.run(tokens, capture=resid, memory=True)
        for kind in ("blinkdl_f32", "own_f64"):
            assert_agree(out.logits[0], logits[f"{text}.logits_{kind}"].astype(np.float32), "oracle")
        if text != "story":
            return
        stream = np.concatenate([out.stack("hook_resid_pre")[:1], out.stack("hook_resid_post")])[:, 0]
        want = inside["story.resid_own_f64calc_f32"]
        assert_agree(np.moveaxis(stream, 0, 1), want.astype(np.float32), "oracle")
        # Recorded value axis first.
        want = inside["story.final_wkv_state_own_f64calc_f32"].swapaxes(-1, -2)
        assert_agree(out.memory.parts["wkv"][:, 0], want.astype(np.float32), "oracle")
