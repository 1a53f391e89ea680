"""Loading gpt-oss as it is published: its experts in MXFP4, decoded exactly as they stream in."""

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

import jmi_models
from jmi_models.disk.layout import disk_shape
from jmi_models.families.gpt_oss import GPT_OSS
from jmi_models.weights import stored
from jmi_models.weights.checkpoint import plan_reads
from tests.oracles import grid, llama_grid
from tests.support.checkpoints import assert_same, compiled, fails
from tests.support.committed import put_together

EXPERTS, WIDTH, HIDDEN = 4, 32, 64
PLAIN = {**grid.GRID["gpt_oss/alternating"], "hidden_size": WIDTH, "intermediate_size": HIDDEN}
QUANTISED = {**PLAIN, "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}}
UP = "model.layers.1.mlp.experts.gate_up_proj"
DOWN = "model.layers.0.mlp.experts.down_proj"
VALUES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
"""Of the sixteen codes."""


def tensors() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The same random model twice: its experts as they are, and in MXFP4."""
    arch, rng = GPT_OSS.from_config(PLAIN), np.random.default_rng(0)
    reads = plan_reads(arch, GPT_OSS, {})
    plain = grid.tensors({n: disk_shape(t[0].key, arch.sizes()) for n, t in reads.items()}, "gpt_oss")
    packed = dict(plain)
    for name in plain:
        if name.endswith(("gate_up_proj", "down_proj")):
            experts, inputs, outputs = packed.pop(name).shape
            codes = rng.integers(0, 16, (experts, outputs, inputs), np.uint8)
            scales = rng.integers(118, 127, (experts, outputs, inputs // 32), np.uint8)
            blocks = codes[..., 0::2] | codes[..., 1::2] << 4
            packed |= {f"{name}_blocks": blocks.reshape(*scales.shape, 16), f"{name}_scales": scales}
            weights = VALUES[codes] * np.repeat(np.exp2(scales.astype(np.float32) - 127), 32, axis=-1)
            plain[name] = np.ascontiguousarray(weights.swapaxes(1, 2))
    return plain, packed


def write(folder: Path, changes: Mapping[str, Any], config: Mapping[str, Any] = QUANTISED) -> Path:
    """A quantised folder with these tensors changed, and those without which they say None left out."""
    packed = {**tensors()[1], **changes}
    return grid.write_folder(folder, dict(config), {n: a for n, a in packed.items() if a is not None})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_model_is_the_one_of_the_decoded_tensors(tmp_path: Path, dtype: str) -> None:
    plain, packed = tensors()
    experts = set(plain) - set(packed)
    assert len(experts) == 4
    plain |= {name: plain[name].astype(dtype) for name in experts}
    want = put_together(PLAIN, plain, dtype)
    got = jmi_models.load(grid.write_folder(tmp_path, QUANTISED, packed), dtype=dtype)
    assert got.arch == want.arch
    assert_same(got.params, want.params)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(got.params)} == {dtype}


def test_every_weight_is_where_its_code_says(tmp_path: Path) -> None:
    packed = tensors()[1]
    mlp = jax.device_get(jmi_models.load(write(tmp_path, {})).params["blocks"]["mlp"])

    def weight(name: str, expert: int, output: int, inputs: int) -> float:
        byte = packed[f"{name}_blocks"].reshape(EXPERTS, -1, packed[f"{name}_scales"].shape[2] * 16)
        code = byte[expert, output, inputs // 2] >> 4 * (inputs % 2) & 15
        return VALUES[code] * 2.0 ** (int(packed[f"{name}_scales"][expert, output, inputs // 32]) - 127)

    rng = np.random.default_rng(1)
    for expert, d, h in rng.integers((EXPERTS, WIDTH, HIDDEN), size=(50, 3)):
        assert mlp["W_gate"][1, expert, d, h] == weight(UP, expert, 2 * h, d)
        assert mlp["W_in"][1, expert, d, h] == weight(UP, expert, 2 * h + 1, d)
        assert mlp["W_out"][0, expert, h, d] == weight(DOWN, expert, d, h)


def test_blocks_and_scales_may_lie_in_different_shards(tmp_path: Path) -> None:
    want = jmi_models.load(write(tmp_path / "single", {})).params
    packed, weight_map = tensors()[1], dict[str, str]()
    (tmp_path / "config.json").write_text(json.dumps(QUANTISED))
    for file, chosen in (("model-1.safetensors", True), ("model-2.safetensors", False)):
        held = {name: array for name, array in packed.items() if name.endswith("_scales") == chosen}
        save_file(held, tmp_path / file)
        weight_map |= dict.fromkeys(held, file)
    (tmp_path / stored.INDEX).write_text(json.dumps({"weight_map": weight_map}))
    assert_same(jmi_models.load(tmp_path).params, want)


def test_a_model_without_such_tensors_is_refused(tmp_path: Path) -> None:
    config = {**llama_grid.GRID["grouped"], "quantization_config": {"quant_method": "mxfp4"}}
    assert "quantised with mxfp4, but no tensor is stored so" in fails(
        llama_grid.write_folder(tmp_path, config)
    )


@pytest.mark.parametrize(
    ("blocks", "scales", "message"),
    [
        ((4, 128, 1, 8), (4, 128, 1), "MXFP4 blocks [4, 128, 1, 8] do not fit scales [4, 128, 1]"),
        ((4, 128, 1, 16), (4, 128, 2), "MXFP4 blocks [4, 128, 1, 16] do not fit scales [4, 128, 2]"),
        ((4, 128, 16), (4, 128, 1), "MXFP4 blocks [4, 128, 16] do not fit"),
        ((), (), "MXFP4 blocks [] do not fit scales []"),
        ((1, 16), (1,), "MXFP4 scales [1] are not those of a matrix"),
    ],
)
def test_shapes_that_do_not_belong_together_name_the_tensor(
    tmp_path: Path, blocks: tuple[int, ...], scales: tuple[int, ...], message: str
) -> None:
    zeros = {f"{UP}_blocks": np.zeros(blocks, np.uint8), f"{UP}_scales": np.zeros(scales, np.uint8)}
    assert fails(write(tmp_path, zeros)).startswith(f"{UP}: {message}")


@pytest.mark.parametrize("part", ["blocks", "scales"])
def test_dtypes_other_than_bytes_name_the_tensor(tmp_path: Path, part: str) -> None:
    name = f"{DOWN}_{part}"
    for dtype, spelled in ((np.int8, "I8"), (ml_dtypes.float8_e8m0fnu, "F8_E8M0")):
        folder = write(tmp_path, {name: tensors()[1][name].view(dtype)})
        assert fails(folder) == f"{DOWN}: its {part} are {spelled}; MXFP4 is stored as U8"


def test_tensors_that_do_not_fit_the_config_are_named(tmp_path: Path) -> None:
    packed = tensors()[1]
    folder = write(
        tmp_path,
        {
            f"{UP}_blocks": packed[f"{UP}_blocks"][:3].copy(),
            f"{UP}_scales": packed[f"{UP}_scales"][:3].copy(),
            f"{DOWN}_scales": None,
        },
    )
    message = fails(folder)
    assert "(3 problems)" in message
    for line in (
        f"shape: {UP} is [3, 32, 128], expected [4, 32, 128]",
        f"missing: {DOWN} [4, 64, 32]",
        f"surplus: {DOWN}_blocks [4, 32, 2, 16]",
    ):
        assert line in message


def test_weights_that_are_not_finite_are_named(tmp_path: Path) -> None:
    scales = tensors()[1][f"{UP}_scales"]
    scales[2, 5, 0] = 255
    assert fails(write(tmp_path, {f"{UP}_scales": scales})).endswith(f"as float32: {UP}")


def test_nothing_is_compiled_to_decode(tmp_path: Path) -> None:
    folder = write(tmp_path, {})
    assert not compiled(lambda: jmi_models.load(folder))


@pytest.mark.oracle
def test_transformers_decodes_the_same_folder_to_the_same_tensors(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the live oracle needs torch")
    pytest.importorskip("transformers", reason="the live oracle needs transformers")
    oracle = importlib.import_module("tests.oracles.hugging_face")
    quantised = {**QUANTISED["quantization_config"], "dequantize": True}
    write(tmp_path, {}, {**PLAIN, "quantization_config": quantised})
    model = oracle.transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=oracle.torch.float32, local_files_only=True
    )
    plain = tensors()[0]
    for name in (UP, DOWN):
        theirs = model.get_parameter(name).detach().float().numpy()
        np.testing.assert_array_equal(theirs, plain[name])
