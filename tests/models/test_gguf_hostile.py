"""GGUF files that are cut short, damaged or lie about themselves: one clear error each, in bounded memory."""

import contextlib
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import jmi_models
from jmi.errors import JmiError
from jmi_models.gguf.header import read_header
from tests.oracles.gguf_files import file_of

WHOLE = file_of("gpt2/plain").read_bytes()
MANY = (2**63 - 1, 2**64 - 1, 2**40, 10**9)


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def value(key: str, kind: int, body: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + body


def tensor(name: str, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return (
        text(name)
        + struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
        + struct.pack("<IQ", kind, offset)
    )


def file(
    values: Sequence[bytes] = (),
    tensors: Sequence[bytes] = (),
    data: int = 0,
    *,
    version: int = 3,
    n_tensors: int | None = None,
    n_values: int | None = None,
) -> bytes:
    """A file of these parts, padded, with ``data`` bytes; counts are right unless they are given."""
    counts = (
        len(tensors) if n_tensors is None else n_tensors,
        len(values) if n_values is None else n_values,
    )
    body = b"GGUF" + struct.pack("<IQQ", version, *counts) + b"".join(values) + b"".join(tensors)
    return body + bytes(-len(body) % 32 + data)


ARCH = value("general.architecture", 8, text("gpt2"))
LLAMA = value("general.architecture", 8, text("llama"))
LIES: dict[str, bytes] = {
    "nothing": b"",
    "magic alone": b"GGUF",
    "another magic": b"GGML" + WHOLE[4:],
    "version 1": file(version=1),
    "version 99": file(version=99),
    "big-endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 0) + bytes(40),
    **{f"{n} tensors": file([ARCH], n_tensors=n) for n in MANY},
    **{f"{n} values": file([ARCH], n_values=n) for n in MANY},
    **{f"a key of {n} characters": file([struct.pack("<Q", n) + b"abc"]) for n in MANY},
    **{f"a text of {n}": file([text("k") + struct.pack("<IQ", 8, n)]) for n in MANY},
    **{f"an array of {n} bytes": file([value("k", 9, struct.pack("<IQ", 0, n))]) for n in MANY},
    **{f"an array of {n} numbers": file([value("k", 9, struct.pack("<IQ", 10, n))]) for n in MANY},
    **{f"an array of {n} texts": file([value("k", 9, struct.pack("<IQ", 8, n))]) for n in MANY},
    "texts that end early": file([value("k", 9, struct.pack("<IQQ", 8, 2, 2**50))]),
    "an array of arrays": file([value("k", 9, struct.pack("<IQIQ", 9, 1, 9, 1))]),
    "arrays within arrays, deep": file([value("k", 9, struct.pack("<IQ", 9, 1) * 10_000)]),
    "a value of type 13": file([value("k", 13, bytes(8))]),
    "a value of type 2**31": file([value("k", 2**31, bytes(8))]),
    "the same key twice": file([ARCH, ARCH]),
    "the same tensor twice": file([ARCH], [tensor("x", (2,)), tensor("x", (2,))], 64),
    "a tensor of five axes": file([ARCH], [tensor("x", (1, 1, 1, 1, 1))], 64),
    "a tensor of 2**32 - 1 axes": file([ARCH], [text("x") + struct.pack("<I", 2**32 - 1)], 64),
    "a tensor of no elements": file([ARCH], [tensor("x", (0, 4))], 64),
    "a tensor beyond the file": file([ARCH], [tensor("x", (1000, 1000))], 64),
    "a tensor of 2**62 elements": file([ARCH], [tensor("x", (2**31, 2**31))], 64),
    "a product that wraps around": file([ARCH], [tensor("x", (2**32, 2**32))], 64),
    "an offset beyond the file": file([ARCH], [tensor("x", (4,), offset=2**40)], 64),
    "an offset of 2**64 - 1": file([ARCH], [tensor("x", (4,), offset=2**64 - 1)], 64),
    "half a block": file([ARCH], [tensor("x", (4, 33), kind=2)], 4096),
    "a quantisation that is unknown": file([ARCH], [tensor("x", (4, 32), kind=4)], 4096),
    "quantisation 2**31": file([ARCH], [tensor("x", (4, 32), kind=2**31)], 4096),
    "a name of a thousand and more": file([ARCH], [tensor("x" * 2000, (4,))], 64),
    "alignment of zero": file([ARCH, value("general.alignment", 4, struct.pack("<I", 0))]),
    "alignment of 2**32 - 1": file([ARCH, value("general.alignment", 4, struct.pack("<I", 2**32 - 1))]),
    "alignment that is a text": file([ARCH, value("general.alignment", 8, text("32"))]),
    "no architecture": file([value("k", 7, b"\1")]),
    "an architecture that is a number": file([value("general.architecture", 4, bytes(4))]),
    "an architecture that is unknown": file([value("general.architecture", 8, text("clip\x1b[2J"))]),
    "an architecture and nothing else": file([ARCH]),
    "an embedding and nothing else": file([ARCH], [tensor("token_embd.weight", (8, 4))], 4096),
    "an embedding of one axis": file([ARCH], [tensor("token_embd.weight", (8,))], 4096),
    "layers beyond counting": file(
        [
            ARCH,
            *(
                value(f"gpt2.{key}", 4, struct.pack("<I", number))
                for key, number in {
                    "block_count": 2**32 - 1,
                    "embedding_length": 4,
                    "attention.head_count": 2,
                    "feed_forward_length": 8,
                    "context_length": 8,
                }.items()
            ),
        ],
        [tensor("token_embd.weight", (8, 4))],
        4096,
    ),
    "a negative number of heads": file(
        [
            LLAMA,
            value("llama.attention.head_count", 5, b"\xff" * 4),
        ],
        [tensor("token_embd.weight", (8, 4))],
        4096,
    ),
    "sizes that are texts": file(
        [ARCH, *(value(f"gpt2.{key}", 8, text("many")) for key in ("block_count", "embedding_length"))],
        [tensor("token_embd.weight", (8, 4))],
        4096,
    ),
    "sizes that are no numbers": file(
        [ARCH, value("gpt2.embedding_length", 6, struct.pack("<f", float("nan")))],
        [tensor("token_embd.weight", (8, 4))],
        4096,
    ),
    "sizes that differ between layers": file(
        [
            LLAMA,
            value("llama.attention.head_count", 9, struct.pack("<IQ2I", 4, 2, 3, 4)),
        ],
        [tensor("token_embd.weight", (8, 4))],
        4096,
    ),
    "an empty list of sizes": file(
        [
            LLAMA,
            value("llama.attention.head_count", 9, struct.pack("<IQ", 4, 0)),
        ],
        [tensor("token_embd.weight", (8, 4))],
        4096,
    ),
}


def refused(content: bytes, folder: Path) -> str:
    """The message of the one error that loading ``content`` ends in."""
    path = folder / "it.gguf"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(JmiError) as caught:
            jmi_models.load(path, tokenizer=False)
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()
    message = str(caught.value)
    assert len(message) < 4000
    assert message.isprintable() or "\n" in message
    assert "\x1b" not in message
    return message


@pytest.mark.parametrize("what", LIES)
def test_a_lie_is_one_clear_error(what: str, tmp_path: Path) -> None:
    assert refused(LIES[what], tmp_path)
    assert not jmi_models.inspect(tmp_path / "it.gguf").supported if LIES[what][:4] == b"GGUF" else True


def test_a_file_that_is_cut_short_anywhere_is_refused(tmp_path: Path) -> None:
    header = read_header(file_of("gpt2/plain"))
    first = min(entry.start for entry in header.tensors.values())
    for end in (*range(4, first, 97), *range(first, len(WHOLE) - 32, 4999)):
        message = refused(WHOLE[:end], tmp_path)
        assert "it.gguf: not a readable GGUF file" in message
        assert "download it again" in message


@pytest.mark.parametrize("seed", range(40))
def test_a_file_with_changed_bytes_is_loaded_or_refused(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    content = bytearray(WHOLE)
    for at in rng.integers(4, 2200, 6):
        content[at] = rng.integers(0, 256)
    path = tmp_path / "it.gguf"
    path.write_bytes(content)
    with contextlib.suppress(JmiError):  # anything else would be raised
        jmi_models.load(path, tokenizer=False)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    content, entry = bytearray(WHOLE), read_header(file_of("gpt2/plain")).tensors["blk.0.attn_norm.weight"]
    content[entry.start : entry.start + 4] = struct.pack("<f", float("nan"))
    assert "not finite" in refused(bytes(content), tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="bounds the memory of a process as Linux does")
def test_lies_are_refused_in_little_memory(tmp_path: Path) -> None:
    """In a process that may not take 4 GiB beyond what it has after its imports."""
    names = [name for name in LIES if any(str(n) in name for n in MANY) or "2**" in name]
    for i, name in enumerate(names):
        (tmp_path / f"{i}.gguf").write_bytes(LIES[name])
    script = (
        "import resource, sys, pathlib\n"
        "from jmi_models.gguf.header import read_header\n"
        "from jmi_models.gguf import kinds\n"
        "from jmi.errors import CheckpointError\n"
        "kinds.kind_of(0)\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 28),) * 2)\n"
        "for file in pathlib.Path(sys.argv[1]).glob('*.gguf'):\n"
        "    try:\n"
        "        read_header(file)\n"
        "    except CheckpointError:\n"
        "        continue\n"
        "    raise SystemExit(f'{file} was read')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
