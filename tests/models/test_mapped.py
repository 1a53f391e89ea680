"""Tensors mapped out of their files: the values, boxes of them, and files that are not what they were."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from jmi.errors import CheckpointError
from jmi_models.disk.mapped import NUMPY, contiguous
from jmi_models.weights.quantised.methods import unquantised
from jmi_models.weights.stored import read_safetensors

RNG = np.random.default_rng(0)


def write(file: Path, tensors: list[tuple[str, str, np.ndarray]]) -> Path:
    """Names, dtypes as safetensors spells them, and values."""
    header, data = {}, b""
    for name, dtype, value in tensors:
        bounds = [len(data), len(data) + value.nbytes]
        header[name] = {"dtype": dtype, "shape": list(value.shape), "data_offsets": bounds}
        data += value.tobytes()
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return file


@pytest.mark.parametrize("dtype", NUMPY)
def test_every_dtype_is_read_bit_by_bit_and_by_boxes_wherever_it_begins(tmp_path: Path, dtype: str) -> None:
    value = RNG.integers(0, 2, (5, 3 * NUMPY[dtype].itemsize), np.uint8).view(NUMPY[dtype])
    odd = np.ones(1, np.uint8)
    file = write(tmp_path / "x.safetensors", [("a", dtype, value), ("odd", "U8", odd), ("b", dtype, value)])
    found = read_safetensors(file)
    assert set(found) == {"a", "odd", "b"}
    for stored in (found["a"], found["b"]):
        assert (stored.shape, stored.dtype) == (value.shape, dtype)
        read = stored.read()
        assert (read.dtype, read.tobytes()) == (value.dtype, value.tobytes())
        assert not read.flags.writeable
        assert stored.read((slice(1, 4), slice(1, 2))).tobytes() == value[1:4, 1:2].tobytes()


def test_a_tensor_without_entries_has_none(tmp_path: Path) -> None:
    save_file({"w": np.zeros((0, 3), np.float32)}, tmp_path / "x.safetensors")
    assert read_safetensors(tmp_path / "x.safetensors")["w"].read().shape == (0, 3)


def test_a_file_that_shrank_or_went_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    save_file({"w": np.ones((64, 64), np.float32)}, file)
    stored = read_safetensors(file)["w"]
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match=r"x\.safetensors: w cannot be read"):
        stored.read()
    file.unlink()
    with pytest.raises(CheckpointError, match=r"x\.safetensors: w cannot be read"):
        stored.read()


def test_a_dtype_that_numpy_lacks_is_an_error_when_it_is_read(tmp_path: Path) -> None:
    value = np.zeros((4, 2), np.uint8)  # eight bytes, as sixteen values of four bits have
    file = write(tmp_path / "x.safetensors", [("w", "F4", value)])
    file.write_bytes(file.read_bytes().replace(b"[4, 2]", b"[8, 2]"))
    stored = read_safetensors(file)["w"]
    with pytest.raises(CheckpointError, match=r"w cannot be read \(it is F4\)"):
        stored.read()


def test_strides_are_those_of_numpy() -> None:
    for shape in ((), (3,), (2, 3, 4), (5, 1, 2)):
        want = np.zeros(shape, np.uint8).strides
        assert contiguous(shape) == want


def test_of_several_experts_in_mxfp4_those_of_the_box_are_decoded(tmp_path: Path) -> None:
    parts = {
        "w_blocks": RNG.integers(0, 256, (4, 6, 2, 16), np.uint8),
        "w_scales": RNG.integers(118, 127, (4, 6, 2), np.uint8),
    }
    save_file(parts, tmp_path / "x.safetensors")
    headers = read_safetensors(tmp_path / "x.safetensors")
    asked = []

    def watched(name: str):
        read = headers[name].read
        return lambda box=None: asked.append(box) or read(box)

    headers = {
        name: type(stored)(stored.file, stored.shape, stored.dtype, watched(name))
        for name, stored in headers.items()
    }
    config = {"quantization_config": {"quant_method": "mxfp4"}}
    decoded = unquantised(config, headers).headers["w"]
    whole = decoded.read()
    assert (whole.shape, whole.dtype) == ((4, 64, 6), np.float32)
    box = (slice(1, 3), slice(8, 40), slice(0, 5))
    np.testing.assert_array_equal(decoded.read(box), whole[box])
    everything, part = (slice(None), slice(None)), (slice(1, 3), slice(0, 5))
    assert asked == [everything, everything, part, part]
