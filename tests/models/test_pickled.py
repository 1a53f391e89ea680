"""Checkpoints of torch.save without torch: what is read, what is refused, and that nothing in them runs."""

import os
import pickle
import subprocess
import sys
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open

import jmi
from jmi.errors import CheckpointError
from jmi_models.weights.pickled import read_headers, read_tensor
from tests.oracles import pickled as oracle
from tests.support.torch_files import (
    Malice,
    mapping,
    named,
    number,
    program,
    sequence,
    storage,
    tensor,
    text,
    write,
)

SQUARE = np.arange(12, dtype=np.float32).reshape(3, 4)


def checkpoint(
    folder: Path, pickled: bytes, entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED
) -> Path:
    return write(folder / "model.bin", pickled, entries, compression)


def one(folder: Path, value: bytes, **entries: bytes) -> Path:
    """A checkpoint of one tensor over the storage of `SQUARE`."""
    return checkpoint(folder, program(mapping({"w": value})), {"data/0": SQUARE.tobytes(), **entries})


def refusal(file: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_headers(file)
    message = str(caught.value)
    assert message.startswith(f"{file.name}: ")
    return message


def same(read: np.ndarray, expected: np.ndarray) -> None:
    assert (read.dtype, read.shape) == (expected.dtype, expected.shape)
    assert read.tobytes() == expected.tobytes()
    assert read.flags.c_contiguous
    assert read.flags.owndata
    assert type(read) is np.ndarray


def test_reads_what_torch_wrote() -> None:
    headers, expected = read_headers(oracle.FILE), oracle.expected()
    assert list(headers) == list(expected)
    for name, header in headers.items():
        assert header.shape == expected[name].shape
        assert header.dtype == oracle.DTYPES.get(name, ("F32",))[0]
        same(read_tensor(header), np.asarray(expected[name]))
    assert headers["tied"] == headers["parameter"]
    assert headers["transposed"] != headers["float32"]


@hypothesis.given(st.data())
def test_any_view_of_a_storage(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(0, 4), max_size=4)))
    strides = tuple(data.draw(st.integers(0, 9)) for _ in shape)
    offset = data.draw(st.integers(0, 5))
    reach = 0 if 0 in shape else 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    values = np.arange(offset + reach + data.draw(st.integers(0, 3)), dtype=ml_dtypes.bfloat16)
    value = tensor(storage("0", len(values), "torch.BFloat16Storage"), shape, strides, offset)
    file = checkpoint(
        tmp_path_factory.mktemp("view"), program(mapping({"w": value})), {"data/0": values.tobytes()}
    )
    read = read_tensor(read_headers(file)["w"])
    steps = [2 * stride for stride in strides]
    same(read, np.lib.stride_tricks.as_strided(values[offset:], shape, steps).copy())


def test_shared_storages_and_attributes_of_the_state_dict(tmp_path: Path) -> None:
    square = storage("0", 12)
    whole, row = tensor(square, (3, 4), (4, 1)), tensor(square, (4,), (1,), 8)
    parameter = named("torch._utils._rebuild_parameter") + sequence(row, b"\x88", b"N") + b"R"
    ordered = named("collections.OrderedDict") + b")R" + mapping({"w": whole, "p": parameter})[1:]
    attributes = mapping({"_metadata": mapping({"": mapping({"version": number(1)})})}) + b"b"
    file = checkpoint(tmp_path, program(ordered + attributes), {"data/0": SQUARE.tobytes()})
    headers = read_headers(file)
    same(read_tensor(headers["w"]), SQUARE)
    same(read_tensor(headers["p"]), SQUARE[2].copy())
    assert headers["p"].start == headers["w"].start + 8 * 4


def test_headers_read_no_data_and_a_read_holds_one_tensor(tmp_path: Path) -> None:
    matrix = np.zeros((1024, 2048), np.float32)
    values = {"w": tensor(storage("0", matrix.size), (1024, 2048), (2048, 1))}
    values["c"] = tensor(storage("0", matrix.size), (1024,), (2048,))
    file = checkpoint(tmp_path, program(mapping(values)), {"data/0": matrix.tobytes()})

    def peak(function: Callable[[Any], Any], argument: Any) -> int:
        tracemalloc.start()
        function(argument)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    headers = read_headers(file)
    assert peak(read_headers, file) < 200_000
    assert peak(read_tensor, headers["w"]) < matrix.nbytes + 100_000
    assert peak(read_tensor, headers["c"]) < 100_000


@pytest.mark.parametrize("nested", [False, True])
def test_malicious_pickles_are_refused_and_nothing_runs(tmp_path: Path, nested: bool) -> None:
    trace = tmp_path / "trace"
    malice = Malice(f"touch {trace}")
    attack = pickle.dumps(malice, protocol=2)
    if nested:
        attack = program(mapping({"w": tensor(storage("0", 12), (3, 4), (4, 1)), "x": attack[2:-1]}))
    file = checkpoint(tmp_path, attack, {"data/0": SQUARE.tobytes()})
    assert f"the pickle asks for '{os.system.__module__}.system'" in refusal(file)
    assert not trace.exists()
    # The attack is real: pickle itself runs it.
    pickle.loads(pickle.dumps(malice, protocol=2))
    assert trace.exists()


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        (b"cbuiltins\neval\n" + sequence(text("1")) + b"R", "asks for 'builtins.eval'"),
        (b"ctorch._utils\nos.system\n" + sequence(text("true")) + b"R", "asks for 'torch._utils.os.system'"),
        (b"(S'true'\nios\nsystem\n", "opcode b'S'"),
        (text("os") + text("system") + b"\x93", r"opcode b'\x93'"),
        (named("collections.OrderedDict") + b")\x81", r"opcode b'\x81'"),
        (b"\x82\x01", r"opcode b'\x82'"),
        (b"Ptrue\n", "opcode b'P'"),
        (named("collections.OrderedDict") + sequence(b"]") + b"R", "calls collections.OrderedDict as torch"),
        (named("torch.FloatStorage") + b")R", "calls torch.FloatStorage as torch.save does not"),
        (
            sequence(text("storage"), named("torch.Size"), text("0"), text("cpu"), number(1)) + b"Q",
            "storage in",
        ),
        (sequence(text("module"), text("x")) + b"Q", "describes a storage"),
    ],
)
def test_what_no_state_dict_needs_is_refused(tmp_path: Path, attack: bytes, message: str) -> None:
    assert message in refusal(checkpoint(tmp_path, program(mapping({"w": attack})), {}))


def test_bombs_end_in_an_error(tmp_path: Path) -> None:
    # Nested as deep as the file is long, then hashed: pickle itself overflows the C stack here.
    deep = b"}N" + b"\x85" * 1_000_000 + b"Ns"
    assert "a dict with names as keys" in refusal(checkpoint(tmp_path, program(deep), {}))
    # Two to the power of 200 elements behind one key, and a dict that holds itself.
    wide = b")q\x00" + b"h\x00h\x00\x86q\x00" * 200
    assert "a dict with names as keys" in refusal(checkpoint(tmp_path, program(b"}" + wide + b"Ns"), {}))
    assert "dict of 1" in refusal(checkpoint(tmp_path, program(b"}q\x00" + text("a") + b"h\x00s"), {}))
    # A slot of the memo, or a length, for which nothing like as much memory exists.
    assert "'a': nonetype" in refusal(
        checkpoint(tmp_path, program(mapping({"a": b"Nr\xff\xff\xff\x7f"})), {})
    )
    assert "damaged" in refusal(checkpoint(tmp_path, program(b"X\xff\xff\xff\x7fa"), {}))
    assert "more than the" in refusal(checkpoint(tmp_path, bytes(17 << 20), {}))


def test_a_tensor_larger_than_memory_is_an_error(tmp_path: Path) -> None:
    header = read_headers(one(tmp_path, tensor(storage("0", 12), (2**40, 2**20), (0, 0))))["w"]
    with pytest.raises(CheckpointError, match=r"model.bin: the tensor of \[1099511627776, 1048576\]"):
        read_tensor(header)


@pytest.mark.parametrize(
    ("shape", "strides", "offset", "message"),
    [
        ((3, 4), (4, 1), 1, "'w': shape [3, 4] with strides [4, 1] from 1 reaches beyond its storage of 12"),
        ((3, 5), (4, 1), 0, "reaches beyond"),
        ((3, 4), (5, 1), 0, "reaches beyond"),
        ((2**70,), (1,), 0, "reaches beyond"),
        ((2,), (2**64,), 0, "reaches beyond"),
        ((0,), (1,), 13, "reaches beyond"),
        ((3, 4), (4, 1), -1, "shape, strides or offset"),
        ((3, -4), (4, 1), 0, "shape, strides or offset"),
        ((3,), (-1,), 2, "shape, strides or offset"),
        ((3, 4), (4,), 0, "shape, strides or offset"),
    ],
)
def test_tensors_beyond_their_storage(
    tmp_path: Path, shape: tuple[int, ...], strides: tuple[int, ...], offset: int, message: str
) -> None:
    assert message in refusal(one(tmp_path, tensor(storage("0", 12), shape, strides, offset)))


def test_storages_that_are_not_as_described(tmp_path: Path) -> None:
    assert "'w': its storage has 48 bytes, but data.pkl says 52" in refusal(
        one(tmp_path, tensor(storage("0", 13), (3, 4), (4, 1)))
    )
    for key in ("1", "../data/0", "/etc/passwd"):
        assert f"'data/{key}' is missing" in refusal(one(tmp_path, tensor(storage(key, 12), (3, 4), (4, 1))))
    whole = tensor(storage("0", 12), (3, 4), (4, 1), metadata=mapping({"neg": b"\x88"}))
    assert "lazily conjugated or negated" in refusal(one(tmp_path, whole))


def test_only_flat_state_dicts(tmp_path: Path) -> None:
    whole = tensor(storage("0", 12), (3, 4), (4, 1))
    data = {"data/0": SQUARE.tobytes()}

    def found(value: bytes) -> str:
        return refusal(checkpoint(tmp_path, program(value), data))

    training = {
        "args": mapping({}),
        "model": mapping({"w": whole, "v": whole}),
        "epoch": number(3),
        "l": b"]",
    }
    assert found(mapping(training)).endswith(
        "not a flat state dict of tensors, it holds {'args': dict of 0, 'model': dict of 2, 'epoch': int, "
        "'l': list of 0}; save its tensors alone: torch.save(torch.load(path)['model'], path)"
    )
    assert found(mapping({"w": whole, "x": b"N"})).endswith("it holds {'x': nonetype}")
    assert found(mapping({str(i): b"\x88" for i in range(20)})).endswith("'7': bool and 12 more}")
    assert found(b"}" + number(0) + whole + b"s").endswith("it holds {0: tensor}")
    assert found(mapping({"s": storage("0", 12)})).endswith("it holds {'s': storage}")
    assert found(whole).endswith("holds tensor, not a state dict")
    assert found(b"](" + whole + b"e").endswith("holds list of 1, not a state dict")
    assert read_headers(checkpoint(tmp_path, program(b"}"), {})) == {}


def test_files_that_are_not_such_archives(tmp_path: Path) -> None:
    file = tmp_path / "model.bin"
    assert "No such file" in refusal(file)
    for content, message in [
        (b"", "not a zip archive"),
        (b"version https://git-lfs.github.com/spec/v1\n", "not a zip archive"),
        (
            pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2),
            "before 1.6, which is not a zip archive; convert it",
        ),
        (b"\0" * 257 + b"ustar" + bytes(300), "before 1.6"),
        (b"PK\x05\x06" + bytes(18), "it has 0 data.pkl"),
    ]:
        file.write_bytes(content)
        assert message in refusal(file)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a/data.pkl", b"")
        archive.writestr("b/data.pkl", b"")
    assert "it has 2 data.pkl" in refusal(file)


def test_damaged_and_foreign_archives(tmp_path: Path) -> None:
    whole = tensor(storage("0", 12), (3, 4), (4, 1))
    pickled, data = program(mapping({"w": whole})), {"data/0": SQUARE.tobytes()}
    assert "byte order big" in refusal(one(tmp_path, whole, byteorder=b"big"))
    same(read_tensor(read_headers(one(tmp_path, whole, byteorder=b"little"))["w"]), SQUARE)
    assert "TorchScript" in refusal(checkpoint(tmp_path, pickled, data | {"constants.pkl": b""}))
    compressed = checkpoint(tmp_path, pickled, data, compression=zipfile.ZIP_DEFLATED)
    assert "'data.pkl' is compressed" in refusal(compressed)
    assert "damaged (it ends early)" in refusal(checkpoint(tmp_path, pickled[:-1], data))
    assert "damaged" in refusal(checkpoint(tmp_path, b"\x80\x02R.", data))

    file = checkpoint(tmp_path, pickled, data)
    content, header = file.read_bytes(), read_headers(file)["w"]
    file.write_bytes(content[: len(content) // 2])
    assert "truncated" in refusal(file)
    with pytest.raises(CheckpointError, match=r"the tensor of \[3, 4\] cannot be read"):
        read_tensor(header)
    file.write_bytes(content.replace(b"_rebuild_tensor_v2", b"_rebuild_tensor_v3"))
    assert "data.pkl is damaged (wrong checksum)" in refusal(file)
    at = content.index(b"PK\x03\x04", 4)
    file.write_bytes(content[:at] + b"XX" + content[at + 2 :])
    assert "'data/0' is not where the archive says" in refusal(file)


def outcome(file: Path) -> str:
    """What reading all of ``file`` ends in."""
    try:
        for header in read_headers(file).values():
            read_tensor(header)
    except CheckpointError as error:
        return str(error)
    return ""


@hypothesis.given(st.data())
@hypothesis.settings(max_examples=300)
def test_no_damage_raises_anything_but_checkpoint_errors(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    whole = tensor(storage("0", 12), (3, 4), (4, 1))
    pickled = bytearray(program(mapping({"w": whole, "v": b"N"})))
    # In the pickle before it is wrapped, checksum and all, or anywhere in the archive.
    inside = data.draw(st.booleans())
    target = pickled
    folder = tmp_path_factory.mktemp("fuzz")
    if not inside:
        target = bytearray(one(folder, whole).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        target[data.draw(st.integers(0, len(target) - 1))] = data.draw(st.integers(0, 255))
    file = checkpoint(folder, bytes(pickled), {"data/0": SQUARE.tobytes()})
    if not inside:
        file.write_bytes(target)
    message = outcome(file)
    assert not message or message.startswith("model.bin: ")


def test_does_not_import_torch() -> None:
    modules = "jmi_models.weights.pickled, jmi_models.weights.quantised.methods"
    code = f"import sys, {modules}; assert 'torch' not in sys.modules"
    paths = os.pathsep.join([str(Path(jmi.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": paths})


def bits(value: Any) -> bytes:
    """The bytes of a tensor of torch in row-major order."""
    import torch

    return value.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()


@pytest.mark.oracle
@pytest.mark.parametrize("checksums", [True, False])
def test_every_dtype_and_view_bit_by_bit(tmp_path: Path, checksums: bool) -> None:
    torch = pytest.importorskip("torch", reason="the live oracle needs torch")
    random = torch.Generator().manual_seed(0)
    tensors = oracle.build(torch)
    for name in (*oracle.DTYPES, "float8_e8m0fnu"):
        dtype = getattr(torch, name)
        raw = torch.randint(0, 2 if name == "bool" else 256, (24 * dtype.itemsize,), generator=random)
        base = raw.to(torch.uint8).view(dtype)
        views = {"cube": base.view(2, 3, 4), "permuted": base.view(2, 3, 4).permute(2, 0, 1)}
        views |= {"window": base.as_strided((5, 3), (2, 1), 7), "every": base[1::5], "none": base[24:]}
        views |= {"tall": base.view(6, 4)[:, None, 2:], "repeated": base[:4].expand(2, 4)}
        tensors |= {f"{name}.{kind}": view for kind, view in views.items()}
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(checksums)
    try:
        torch.save(tensors, tmp_path / "model.pth")
    finally:
        torch.serialization.set_crc32_options(before)
    headers = read_headers(tmp_path / "model.pth")
    assert list(headers) == list(tensors)
    for name, header in headers.items():
        read = read_tensor(header)
        assert read.shape == header.shape == tuple(tensors[name].shape)
        assert read.tobytes() == bits(tensors[name]), name


@pytest.mark.oracle
def test_state_dict_of_a_module_and_the_spelling_of_dtypes(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="the live oracle needs torch")
    safetensors = pytest.importorskip("safetensors.torch")
    module = torch.nn.TransformerEncoderLayer(8, 2, 16, dtype=torch.bfloat16)
    ours, theirs = tmp_path / "model.pth", tmp_path / "model.safetensors"
    torch.save(module.state_dict(), ours)
    headers = read_headers(ours)
    assert list(headers) == list(module.state_dict())
    for name, value in module.state_dict().items():
        assert read_tensor(headers[name]).tobytes() == bits(value)
    tensors = {name: torch.zeros(2, 3, dtype=getattr(torch, name)) for name in oracle.DTYPES}
    torch.save(tensors, ours)
    safetensors.save_file(tensors, theirs)
    headers = read_headers(ours)
    with safe_open(theirs, framework="pt") as file:
        for name in tensors:
            view = file.get_slice(name)
            assert (headers[name].shape, headers[name].dtype) == (tuple(view.get_shape()), view.get_dtype())


@pytest.mark.oracle
def test_formats_of_torch_that_are_refused(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="the live oracle needs torch")
    file, ones = tmp_path / "model.pth", torch.ones(2, 3)
    for value, message in [
        ({"w": ones.to_sparse()}, "_rebuild_sparse_tensor"),
        ({"w": ones.to("meta")}, "_rebuild_meta_tensor_no_storage"),
        ({"w": ones.to(torch.complex64).conj()}, "lazily conjugated"),
        ({"w": ones.to(torch.complex128)}, "torch.ComplexDoubleStorage"),
        ({"w": ones.numpy()}, "_reconstruct"),
        ({"model": {"w": ones}, "step": 3}, "not a flat state dict"),
        (torch.nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
    ]:
        torch.save(value, file)
        assert message in refusal(file)
    torch.save({"w": ones}, file, _use_new_zipfile_serialization=False)
    assert "before 1.6" in refusal(file)
    torch.save({"w": ones}, file, pickle_protocol=4)
    assert "another pickle_protocol" in refusal(file)
