"""Finding a model: embedded, in a folder, in the Hugging Face cache or on the hub."""

import dataclasses
import hashlib
import os
import re
import stat
import warnings
from collections.abc import Iterable
from pathlib import Path

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from jmi.errors import ConfigError, DownloadError, printable
from jmi.reading import read_object
from jmi.tokenizers import VOCABULARIES
from jmi_models.embedded import MODELS
from jmi_models.families import FAMILIES, multimodal
from jmi_models.gguf import places
from jmi_models.gguf.model import parts_of

_FILES = (
    "config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    VOCABULARIES,
    "adapter_config.json",
    "adapter_model.safetensors",
)
_LONE_FILES = ("*.safetensors", "*.pth")
_BIN_FILES = ("pytorch_model*.bin", "pytorch_model.bin.index.json")


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a model came from.

    Attributes:
      name: as asked for.
      folder: with its files.
      revision: commit of a hub model, else None.
      file: the GGUF file that is the model, or the first of its parts; None for files as Hugging Face has
        them.
    """

    name: str
    folder: Path
    revision: str | None = None
    file: Path | None = None

    def files(self) -> list[Path]:
        """Its files; of a GGUF file the parts that make up the model."""
        if self.file is not None:
            return parts_of(self.file)
        return sorted(path for path in self.folder.iterdir() if path.is_file())

    def identity(self) -> str:
        """Commit of a hub model, or a hash over its files."""
        return self.revision or f"sha256:{_hash(self.folder if self.file is None else self.file)}"


@dataclasses.dataclass(frozen=True)
class CachedModel:
    """A supported model on this machine: in the Hugging Face cache, or brought by a package.

    ``revision`` is the commit of a model in the cache; a package's has none.
    """

    name: str
    family: str
    revision: str | None
    folder: Path
    bytes: int


def find(
    name: str, revision: str | None = None, config_only: bool = False, pytorch_bin: bool = False
) -> Source:
    """Locate the files of a model, downloading them if they are nowhere on this machine.

    Args:
      name: an embedded model (`jmi_models.embedded.MODELS`), one that a package brings
        (`gguf.places.PACKAGES`), a folder, a GGUF file, a hub id, or one with the name of such a file
        (``organisation/model/file.gguf``).
      revision: branch, tag or commit of a hub model.
      config_only: fetch ``config.json`` and nothing else.
      pytorch_bin: fetch ``pytorch_model.bin`` where there are no safetensors.

    Raises:
      DownloadError: nowhere to be found; the message says what was tried.
    """
    path = _path(name)
    if name in MODELS or name in places.PACKAGES or path is not None:
        if revision is not None:
            raise ConfigError(
                f"revision={revision!r}: only models from the hub have revisions, not {printable(name)}"
            )
        return _here(name, path)
    if found := re.fullmatch(r"([\w.-]+/[\w.-]+)/([\w./-]+\.gguf)", name):
        return _hub_file(name, found[1], found[2], revision)
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or name.startswith("."):
        raise DownloadError(
            f"{printable(name)}: no such folder or file, and not a hub id (organisation/model)"
        )
    folder = _cached_commit(name, revision) or _snapshot(
        name, revision, _FILES[:1] if config_only else _FILES
    )
    if pytorch_bin and not config_only and not any(folder.glob("model*.safetensors")):
        folder = _snapshot(name, revision, (*_FILES, *_BIN_FILES))
    return Source(name, folder, folder.name)


def _here(name: str, path: Path | None) -> Source:
    """A model on this machine."""
    if name in MODELS:
        return Source(name, MODELS[name])
    file = places.from_package(name) if path is None else places.file_at(path)
    if file is not None:
        return Source(name, file.parent, file=file)
    assert path is not None
    if path.is_file():
        raise ConfigError(f"{printable(name)} is no GGUF file; give one, or the folder of a model")
    return Source(name, path)


def _hub_file(name: str, repository: str, file: str, revision: str | None) -> Source:
    """One GGUF file of a hub repository, with the other parts of its model."""
    part = re.fullmatch(r"(.*)-\d{5}-of-(\d{5}\.gguf)", file)
    pattern = file if part is None else f"{part[1]}-*-of-{part[2]}"
    folder = _snapshot(repository, revision, (pattern,))
    if not (folder / file).is_file():
        raise DownloadError(f"{repository} has no file {printable(file)}; see its list of files on the hub")
    return Source(name, (folder / file).parent, folder.name, folder / file)


def _path(name: str) -> Path | None:
    """The folder or file of this name, if there is one."""
    try:
        path = Path(name).expanduser()
        return path if name and (path.is_dir() or path.is_file()) else None
    except (OSError, RuntimeError):  # longer than any path, or the home of nobody
        return None


def _cached_commit(name: str, revision: str | None) -> Path | None:
    """Folder of a commit that is in the cache with its weights: a commit never changes, so no need to ask."""
    if revision is None or not re.fullmatch(r"[0-9a-f]{40}", revision):
        return None
    try:
        folder = Path(huggingface_hub.snapshot_download(name, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None
    return folder if any(folder.glob("model*.safetensors")) else None


def _snapshot(name: str, revision: str | None, files: tuple[str, ...]) -> Path:
    packages = ", ".join(places.HOW_TO_INSTALL)
    tried = f"not embedded ({', '.join(MODELS)}), not of a package ({packages}), not a folder"
    return downloaded(name, revision, files, tried)


def downloaded(repo: str, revision: str | None, files: Iterable[str], tried: str) -> Path:
    """The snapshot of a hub repository with those files that match some patterns; of the cache if need be.

    Args:
      tried: what the name was found not to be, for the message.

    Raises:
      DownloadError: neither in the cache nor to be had; the message says what to do.
    """
    try:
        return Path(huggingface_hub.snapshot_download(repo, revision=revision, allow_patterns=list(files)))
    except HFValidationError as error:
        raise DownloadError(f"{repo}: not a hub id ({printable(error)})") from None
    except LocalEntryNotFoundError:
        raise DownloadError(
            f"{repo}: {tried}, not in the Hugging Face cache, and {_why_unreachable()}, or give a folder"
        ) from None
    except HfHubHTTPError as error:
        reason = printable(str(error).partition("\n")[0])
        raise DownloadError(
            f"{repo}: the hub refused it ({reason}); check the name, and for a gated model accept its "
            "licence and set HF_TOKEN"
        ) from None
    except OSError as error:
        raise DownloadError(
            f"{repo}: download failed ({printable(error)}); try again, or give a folder"
        ) from None


def _why_unreachable() -> str:
    """Why there is no asking the hub, and what to do."""
    if not constants.HF_HUB_OFFLINE:
        return "the hub cannot be reached; connect"
    set_ones = [name for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE") if os.environ.get(name)]
    return f"the hub is switched off by {(set_ones or ['HF_HUB_OFFLINE'])[0]}; unset that"


def list_cached() -> list[CachedModel]:
    """Models on this machine that jmi can load, by name: of the Hugging Face cache, and of packages.

    Of each in the cache, the newest whole revision.

    What is broken, such as weights that are gone, is left out with one warning that names it.
    """
    found, broken = _installed(), list[str]()
    for repo in sorted(Path(constants.HF_HUB_CACHE).glob("models--*")):
        name = repo.name.removeprefix("models--").replace("--", "/")
        for snapshot in sorted(repo.glob("snapshots/*/"), key=_modified, reverse=True):
            try:
                cached = _cached(name, snapshot)
            except (OSError, ConfigError) as error:
                broken.append(f"{name} at {snapshot.name}: {error}")
                continue
            if cached:
                found.append(cached)
                break
    if broken:
        shown = "; ".join(printable(line) for line in broken[:5])
        warnings.warn(
            f"broken in the Hugging Face cache: {shown}{'; ...' if broken[5:] else ''}; delete it there",
            stacklevel=2,
        )
    return sorted(found, key=lambda model: model.name)


def _installed() -> list[CachedModel]:
    """Models that packages have brought."""
    return [
        CachedModel(name, places.FAMILIES[name], None, file.parent, size)
        for name, (file, size) in places.installed().items()
    ]


def _modified(snapshot: Path) -> float:
    """When the last of its files was written."""
    return max((file.stat().st_mtime for file in snapshot.iterdir() if file.exists()), default=0.0)


def _cached(name: str, folder: Path) -> CachedModel | None:
    """The model in a snapshot; None where it is incomplete or not supported, an error where it is broken."""
    config, weights = folder / "config.json", list(folder.glob("model*.safetensors"))
    if not os.path.lexists(config) or not weights:
        return None
    kind = read_object(config, ConfigError).get("model_type")
    if str(kind) not in (*FAMILIES, *multimodal.KINDS):
        return None
    found = [file.stat() for file in weights]
    if not all(stat.S_ISREG(one.st_mode) for one in found):
        raise ConfigError("weights are not regular files")
    return CachedModel(name, str(kind), folder.name, folder, sum(one.st_size for one in found))


def _hash(path: Path) -> str:
    """Of the files of a model: a folder's, or a GGUF file with its parts."""
    digest = hashlib.sha256()
    patterns = (*_FILES, *_BIN_FILES, *_LONE_FILES)
    files = (
        sorted({p for pattern in patterns for p in path.glob(pattern) if p.is_file()})
        if path.is_dir()
        else parts_of(path)
    )
    for file in files:
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
