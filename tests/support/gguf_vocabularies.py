"""The committed vocabularies of GGUF files, which `tests.oracles.gguf_vocabularies` writes."""

import functools
import gzip
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jmi_models.gguf.header import read_header
from tests.support.texts import WRITTEN

DATA = Path(__file__).parents[1] / "data" / "gguf"
TEXTS = WRITTEN[::2]
"""Texts whose tokens are recorded."""


def unpack(name: str, folder: Path) -> Path:
    """Write the file ``name`` into a folder."""
    file = folder / f"{name}.gguf"
    file.write_bytes(gzip.decompress((DATA / f"{name}.gguf.gz").read_bytes()))
    return file


@functools.cache
def _read(name: str) -> Mapping[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        return read_header(unpack(name, Path(folder))).metadata


def metadata(name: str, **changes: Any) -> dict[str, Any]:
    """Metadata of a file, with changes to ``tokenizer.ggml.*``; what is None is left out."""
    said = _read(name) | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    return {key: value for key, value in said.items() if value is not None}


@functools.cache
def recorded() -> dict[str, Any]:
    """Name -> ids, starts of tokens, number without special ones, and text of `TEXTS` by transformers."""
    return json.loads(gzip.decompress((DATA / "expected.json.gz").read_bytes()))
