"""Files jmi writes: whole or not at all, and self-contained."""

import contextlib
import dataclasses
import json
import math
import os
import platform
import tempfile
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jmi.errors import ConfigError

SCHEMA_VERSION = 1
_PACKAGES = ("jmi", "jax", "jaxlib", "numpy", "tokenizers", "safetensors")


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary file beside ``path`` that takes its place when the block succeeds, else vanishes.

    Raises:
      ConfigError: the folder does not exist or cannot be written to.
    """
    path = Path(path)
    check_writable(path)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes private files; a result is as readable as any other new file.
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(path: str | Path) -> None:
    """Raise ConfigError when ``path`` cannot become a file: before the work, not after it."""
    path = Path(path)
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; give a file name")
    if not path.parent.is_dir():
        raise ConfigError(f"{path}: the folder {path.parent} does not exist; create it first")
    if not os.access(path.parent, os.W_OK):
        raise ConfigError(f"{path}: the folder {path.parent} cannot be written to")


def write_json(path: str | Path, result: Mapping[str, Any]) -> None:
    """Write a result as JSON, atomically. Arrays become lists; NaN and infinity become null."""
    text = json.dumps(_plain(result), indent=2, allow_nan=False)
    with replacing(path) as temporary:
        temporary.write_text(text + "\n")


def environment() -> dict[str, Any]:
    """Versions and device a result was made with."""
    device = jax.devices()[0]
    return {
        "packages": {name: _version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": {"kind": device.device_kind, "backend": jax.default_backend(), "count": jax.device_count()},
    }


def describe_hooks(hooks: Mapping[str, Any]) -> dict[str, Any]:
    """A hooks dict as plain data: kind and every field of each intervention."""
    return {
        name: [_describe(h) for h in (v if isinstance(v, (list, tuple)) else [v])]
        for name, v in hooks.items()
    }


def _describe(hook: Any) -> dict[str, Any]:
    if not dataclasses.is_dataclass(hook):
        name = getattr(hook, "__qualname__", type(hook).__qualname__)
        return {"kind": f"{getattr(hook, '__module__', type(hook).__module__)}.{name}"}
    fields = {f.name: getattr(hook, f.name) for f in dataclasses.fields(hook) if f.repr}
    nested = {k: _describe(v) if callable(v) else v for k, v in fields.items() if v is not None}
    return {"kind": type(hook).__name__, **nested}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (jax.Array, np.ndarray, np.generic)):
        return _plain(
            np.asarray(value).astype(float).tolist()
            if value.dtype == "bfloat16"
            else np.asarray(value).tolist()
        )
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
