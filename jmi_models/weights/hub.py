"""Finding a model: embedded, in a folder, in the Hugging Face cache or on the hub."""

import dataclasses
import hashlib
import os
import re
import stat
import warnings
from pathlib import Path

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from jmi.errors import ConfigError, DownloadError, printable
from jmi.reading import read_object
from jmi.tokenizers import VOCABULARIES
from jmi_models.embedded import MODELS
from jmi_models.families import FAMILIES

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
    """

    name: str
    folder: Path
    revision: str | None = None

    def identity(self) -> str:
        """Commit of a hub model, or a hash over the files of a folder."""
        return self.revision or f"sha256:{_hash(self.folder)}"


@dataclasses.dataclass(frozen=True)
class CachedModel:
    """A supported model in the Hugging Face cache."""

    name: str
    family: str
    revision: str
    folder: Path
    bytes: int


def find(
    name: str, revision: str | None = None, config_only: bool = False, pytorch_bin: bool = False
) -> Source:
    """Locate the files of a model, downloading them if they are nowhere on this machine.

    Args:
      name: an embedded model (`jmi_models.embedded.MODELS`), a folder, or a hub id.
      revision: branch, tag or commit of a hub model.
      config_only: fetch ``config.json`` and nothing else.
      pytorch_bin: fetch ``pytorch_model.bin`` where there are no safetensors.

    Raises:
      DownloadError: nowhere to be found; the message says what was tried.
    """
    path = _folder(name)
    if name in MODELS or path is not None:
        if revision is not None:
            raise ConfigError(
                f"revision={revision!r}: only models from the hub have revisions, not {printable(name)}"
            )
        return Source(name, MODELS[name] if path is None else MODELS.get(name, path))
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or name.startswith("."):
        raise DownloadError(f"{printable(name)}: no such folder, and not a hub id (organisation/model)")
    folder = _cached_commit(name, revision) or _snapshot(
        name, revision, _FILES[:1] if config_only else _FILES
    )
    if pytorch_bin and not config_only and not any(folder.glob("model*.safetensors")):
        folder = _snapshot(name, revision, (*_FILES, *_BIN_FILES))
    return Source(name, folder, folder.name)


def _folder(name: str) -> Path | None:
    """The folder of this name, if there is one."""
    try:
        path = Path(name).expanduser()
        return path if name and path.is_dir() else None
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
    try:
        return Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=list(files)))
    except HFValidationError as error:
        raise DownloadError(f"{name}: not a hub id ({printable(error)})") from None
    except LocalEntryNotFoundError:
        raise DownloadError(
            f"{name}: not embedded ({', '.join(MODELS)}), not a folder, not in the Hugging Face cache, "
            f"and {_why_unreachable()}, or give a folder"
        ) from None
    except HfHubHTTPError as error:
        reason = printable(str(error).partition("\n")[0])
        raise DownloadError(
            f"{name}: the hub refused it ({reason}); check the name, and for a gated model accept its "
            "licence and set HF_TOKEN"
        ) from None
    except OSError as error:
        raise DownloadError(
            f"{name}: download failed ({printable(error)}); try again, or give a folder"
        ) from None


def _why_unreachable() -> str:
    """Why there is no asking the hub, and what to do."""
    if not constants.HF_HUB_OFFLINE:
        return "the hub cannot be reached; connect"
    set_ones = [name for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE") if os.environ.get(name)]
    return f"the hub is switched off by {(set_ones or ['HF_HUB_OFFLINE'])[0]}; unset that"


def list_cached() -> list[CachedModel]:
    """Models in the Hugging Face cache that jmi can load, by name; of each, the newest whole revision.

    What is broken, such as weights that are gone, is left out with one warning that names it.
    """
    found, broken = [], list[str]()
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


def _modified(snapshot: Path) -> float:
    """When the last of its files was written."""
    return max((file.stat().st_mtime for file in snapshot.iterdir() if file.exists()), default=0.0)


def _cached(name: str, folder: Path) -> CachedModel | None:
    """The model in a snapshot; None where it is incomplete or not supported, an error where it is broken."""
    config, weights = folder / "config.json", list(folder.glob("model*.safetensors"))
    if not os.path.lexists(config) or not weights:
        return None
    kind = read_object(config, ConfigError).get("model_type")
    if str(kind) not in FAMILIES:
        return None
    found = [file.stat() for file in weights]
    if not all(stat.S_ISREG(one.st_mode) for one in found):
        raise ConfigError("weights are not regular files")
    return CachedModel(name, str(kind), folder.name, folder, sum(one.st_size for one in found))


def _hash(folder: Path) -> str:
    digest = hashlib.sha256()
    files = sorted(
        {p for pattern in (*_FILES, *_BIN_FILES, *_LONE_FILES) for p in folder.glob(pattern) if p.is_file()}
    )
    for file in files:
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
