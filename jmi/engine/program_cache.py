"""Compiled programs on disk, so that the next process need not compile them again."""

import contextlib
import glob
import hashlib
import os
import platform
import re
import tempfile
import warnings
from pathlib import Path

from jmi.artefacts import cache_home
from jmi.errors import ArgumentError

MOST_BYTES, MOST_PROGRAMS = 2**29, 4096
"""What a folder holds at most when `cache_programs` is done with it; of tiny models a program takes 6 KiB."""

_FOLDER = "JAX_COMPILATION_CACHE_DIR"
# By default JAX keeps only what took a second to compile; most programs of small models take less.
_KEEP_ALL = {
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}


def cache_programs(folder: str | Path | None = None) -> Path | None:
    """Keep compiled programs on disk from now on, and use those that are there. The commands do.

    Without ``folder`` they lie where this system keeps what can be made again, in ``jmi/programs``:
    ``$XDG_CACHE_HOME`` or ``~/.cache`` on Linux, ``~/Library/Caches`` on macOS, ``%LOCALAPPDATA%`` on
    Windows, and there in a folder for this kind of processor, whose code another one may not run. The
    environment variable ``JAX_COMPILATION_CACHE_DIR`` wins over all this.

    The call removes the programs used longest ago until `MOST_BYTES` and `MOST_PROGRAMS` are kept; what
    one process then compiles comes on top. (JAX's own bound, ``jax_compilation_cache_max_size``, reads
    the whole folder at every compilation: 50 ms with a thousand programs.) From a folder that the
    environment names nothing is removed: set ``JAX_COMPILATION_CACHE_MAX_SIZE`` to bound that.

    JAX trusts what it finds there: whoever may write to the folder may run code as you. A program that
    is damaged is compiled anew, with a warning; the commands then remove it.

    Returns:
      The folder; None, after one warning, where none can be written, such as in a read-only home.

    Raises:
      ArgumentError: ``folder`` is no path.

    Example:
      >>> import jmi
      >>> folder = jmi.cache_programs()
    """
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    if folder is not None and not isinstance(folder, (str, Path)):
        raise ArgumentError(f"folder={folder!r}: give the path of a folder, or None for the default")
    if named := os.environ.get(_FOLDER):
        found = Path(named)
    else:
        try:
            found = _default() if folder is None else Path(folder).expanduser()
            _prepare(found)
        except (OSError, RuntimeError) as error:  # RuntimeError: nobody's home
            warnings.warn(
                f"compiled programs are not kept: {error}; set {_FOLDER} to a folder that can be written",
                stacklevel=2,
            )
            return None
    for name, value in _KEEP_ALL.items():
        if name.upper() not in os.environ:
            jax.config.update(name, value)
    if jax.config.jax_compilation_cache_dir != str(found):  # type: ignore[attr-defined]
        jax.config.update("jax_compilation_cache_dir", str(found))
        compilation_cache.reset_cache()
    return found


def forget_damaged(warning: str) -> None:
    """Remove the programs that a warning of JAX is about: it would read them, and warn, for ever.

    Only where `cache_programs` chose the folder; any other warning is nothing to this function.
    """
    import jax

    about = re.match(r"Error reading persistent compilation cache entry for '([\w<>.-]+)'", warning)
    folder = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    if about and folder and not os.environ.get(_FOLDER):
        for path in Path(folder).glob(f"{glob.escape(about[1])}-*-cache"):
            path.unlink(missing_ok=True)


def _default() -> Path:
    """The folder of this user for this kind of processor."""
    return cache_home() / "programs" / hashlib.sha256(_processor().encode()).hexdigest()[:12]


def _processor() -> str:
    """What tells kinds of processors apart: on Linux, what they can do."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        able = next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        able = platform.processor()
    return f"{platform.machine()} {able}"


def _prepare(folder: Path) -> None:
    """Make the folder, bound what is in it, and see that it can be written; OSError if not."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass
    left = MOST_BYTES
    for number, (size, path) in enumerate(_by_last_use(folder)):
        left -= size
        if left < 0 or number >= MOST_PROGRAMS:
            with contextlib.suppress(OSError):  # another process may have removed it
                os.unlink(path)


def _by_last_use(folder: Path) -> list[tuple[int, str]]:
    """Size and path of every program, the one used last first."""
    programs = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith("-cache"):
                with contextlib.suppress(OSError):
                    state = entry.stat()
                    programs.append((max(state.st_atime, state.st_mtime), state.st_size, entry.path))
    return [(size, path) for _, size, path in sorted(programs, reverse=True)]
