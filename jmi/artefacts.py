"""Files jmi writes: whole or not at all, and self-contained."""

import contextlib
import dataclasses
import json
import math
import os
import platform
import stat
import sys
import tempfile
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jmi
from jmi.errors import ArgumentError, OutputError

if sys.platform != "win32":
    import fcntl

SCHEMA_VERSION = 2
_PACKAGES = ("jax", "jaxlib", "numpy", "tokenizers", "safetensors")


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary file that takes the place of ``path`` when the block succeeds, else vanishes.

    A link is followed: the file it points to is replaced, in its own folder, and keeps its mode. What
    a killed write of this file left behind is removed. Write to the temporary file, do not rename it.

    Raises:
      OutputError: as `check_writable`; or writing failed (a full disk): the old file is as it was.
    """
    target = _target(path)
    try:
        with _temporary(target) as temporary:
            yield temporary
            temporary.chmod(_mode(target))
            os.replace(temporary, target)
    except OSError as error:
        raise OutputError(
            f"{path} could not be written: {error.strerror or error}; {target.name} is as it was"
        ) from None


def cache_home() -> Path:
    """Where this system keeps what jmi can make again: ``jmi`` in ``$XDG_CACHE_HOME``, or its like."""
    local = {"win32": os.environ.get("LOCALAPPDATA"), "darwin": "~/Library/Caches"}
    given = local.get(sys.platform) or os.environ.get("XDG_CACHE_HOME", "")
    base = Path(given).expanduser()
    if not base.is_absolute():  # as the XDG specification has it
        base = Path.home() / ".cache"
    return base / "jmi"


def check_writable(path: str | Path) -> None:
    """Raise OutputError when ``path`` cannot become a file: before the work, not after it.

    It is refused when it exists and is no regular file (a folder, a device, a pipe), is read-only,
    or no file can be made in its folder.
    """
    target = _target(path)
    try:
        with _temporary(target):
            pass
    except OSError as error:
        raise OutputError(f"{path}: no file can be made in {target.parent}: {error.strerror}") from None


def write_json(path: str | Path, result: Mapping[str, Any]) -> None:
    """Write a result as JSON, atomically. Arrays become lists; NaN and infinity become null.

    Raises:
      ArgumentError: something JSON has no form for.
      OutputError: as `replacing`.
    """
    try:
        text = json.dumps(plain(result), indent=2, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ArgumentError(f"{path}: the result cannot be written as JSON: {error}") from None
    with replacing(path) as temporary:
        temporary.write_text(text + "\n")


def _target(path: str | Path) -> Path:
    """The file that ``path`` leads to, all links followed; OutputError when it cannot be one."""
    if not os.path.basename(path):
        raise OutputError(f"{str(path)!r} names no file")
    try:
        # Of the path as given: what stands in /proc and /dev is not where its links say.
        found = os.stat(path)
    except FileNotFoundError:
        found = None
    except (OSError, ValueError) as error:
        raise OutputError(f"{str(path)!r}: {getattr(error, 'strerror', None) or error}") from None
    target = Path(os.path.realpath(path))
    if found is None and not target.parent.is_dir():
        raise OutputError(f"{path}: the folder {target.parent} does not exist; create it first")
    if found is not None and not stat.S_ISREG(found.st_mode):
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "no regular file"
        raise OutputError(f"{path} is {kind}; give the name of a file")
    if found is not None and not os.access(target, os.W_OK):
        raise OutputError(f"{path} is read-only; give another name, or make it writable")
    return target


@contextlib.contextmanager
def _temporary(target: Path) -> Iterator[Path]:
    """An empty file beside ``target``, after removing those that killed writers of it left there."""
    begin, end = f".{target.name[:40]}.", f".partial{target.suffix[:10]}"
    for path in target.parent.iterdir():
        if path.name.startswith(begin) and path.name.endswith(end):
            _remove_if_left(path)
    path, lock = _locked(target.parent, begin, end)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
        if lock is not None:
            os.close(lock)


def _locked(folder: Path, begin: str, end: str) -> tuple[Path, int | None]:
    """A new file, and the handle that locks it: the system drops a lock with its process."""
    while True:
        handle, name = tempfile.mkstemp(prefix=begin, suffix=end, dir=folder)
        if sys.platform == "win32":  # does not rename open files; what is left behind stays
            os.close(handle)
            return Path(name), None
        with contextlib.suppress(OSError):  # a file system without locks: nothing is removed there
            fcntl.flock(handle, fcntl.LOCK_EX)
        if os.path.exists(name):
            return Path(name), handle
        os.close(handle)  # Another writer took it for a leftover before it was locked.


def _remove_if_left(path: Path) -> None:
    """Remove a temporary file that no process has locked."""
    if sys.platform == "win32":
        return
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
        finally:
            os.close(handle)


def _mode(target: Path) -> int:
    """The mode of a file that is replaced; a new one is as readable as any other new file."""
    if target.exists():
        return stat.S_IMODE(target.stat().st_mode)
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def environment() -> dict[str, Any]:
    """Versions and device a result was made with."""
    import jax

    device = jax.devices()[0]
    return {
        "packages": {"jmi": jmi.__version__, **{name: _version(name) for name in _PACKAGES}},
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


def plain(value: Any) -> Any:
    """Dicts, lists and arrays, in each other, as what JSON has a form for; NaN and infinity are None."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if hasattr(value, "dtype") and hasattr(value, "__array__"):  # of JAX or numpy, neither imported for this
        array = value.__array__()
        return plain((array.astype(float) if array.dtype == "bfloat16" else array).tolist())
    if isinstance(value, (list, tuple, range)):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
