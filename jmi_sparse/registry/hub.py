"""Finding a dictionary on the hub, by a name of the registry or by its repository, and fetching its files."""

import dataclasses
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from jmi.checks import shown, text
from jmi.errors import ArgumentError, ConfigError, DownloadError
from jmi_models.disk import words
from jmi_models.weights.hub import downloaded
from jmi_sparse.formats.reading.asked import Asked
from jmi_sparse.formats.reading.yaml_files import read_yaml
from jmi_sparse.registry import listed
from jmi_sparse.registry.listed import Entry

_NUMBERS = ("[0-9]", "[0-9][0-9]", "[0-9][0-9][0-9]")
"""A star would match folders, too, and fetch a whole repository."""

_LISTS = ("config.yaml", "wandb-config.yaml", "wanb-config.yaml")


def _numbered(*prefixes: str) -> tuple[str, ...]:
    return tuple(f"{prefix}{number}.safetensors" for prefix in prefixes for number in _NUMBERS)


FILES: Mapping[str, tuple[str, ...]] = {
    "saelens": ("cfg.json", "sae_weights.safetensors", "sparsity.safetensors", "activation_scaler.json"),
    "gemma-scope": ("params.npz",),
    "gemma-scope-2": ("config.json", "params.safetensors", *_numbered("params_layer_")),
    "llama-scope": (
        "hyperparams.json",
        "checkpoints/final.safetensors",
        "config.json",
        "sae_weights.safetensors",
    ),
    "dictionary-learning": ("config.json", "ae.pt"),
    "sparsify": ("cfg.json", "sae.safetensors"),
    "circuit-tracer": (*_LISTS, *_numbered("layer_")),
    "circuit-tracer-clt": (*_LISTS, *_numbered("W_enc_", "W_dec_")),
}
"""What a folder of each format holds; of formats of one file there is nothing to say."""

_BESIDE = (*_LISTS, "config.json")
"""What lies beside a file, or a folder, and is read with it."""

_PLAIN = re.compile(r"[\w.+:\-]+", re.ASCII)
_REPO = re.compile(r"[\w-][\w.-]*/[\w.-]+", re.ASCII)
_LISTED = re.compile(r"hf://([^/?]+/[^/?]+)/([^?]+)(?:\?revision=([\w./-]+))?", re.ASCII)


@dataclasses.dataclass(frozen=True)
class Found:
    """A dictionary on this machine.

    Attributes:
      path: of its folder or file.
      entry: what the registry says of it, if it is there.
      listed: files in other repositories that its ``config.yaml`` names, by the name there.
    """

    path: Path
    entry: Entry | None
    listed: Mapping[str, Path] = dataclasses.field(default_factory=dict)

    def completed(self, asked: Asked) -> Asked:
        """What was asked for, with what is known and the dictionary's own files do not say."""
        return dataclasses.replace(
            asked,
            files=self.listed,
            listed_factor=self.entry.norm_factor if self.entry else None,
            normalize_activations=self.entry.normalize_activations if self.entry else None,
        )


def located(source: str | Path, revision: str | None = None) -> Found:
    """A dictionary on this machine, where ``source`` is a path, or else one of the hub: `found`.

    Raises:
      ArgumentError: no such path, or one with a revision; else as of `found`.
    """
    if not isinstance(source, (str, Path)) or not str(source):
        raise ArgumentError(f"source={shown(source)}: give the path of a folder, or a name")
    if _is_there(path := Path(source)) or _is_there(path := Path(os.path.expanduser(source))):
        if revision is not None:
            raise ArgumentError(
                f"revision={shown(revision)}: only what is on the hub has revisions, not a path"
            )
        return Found(path, None)
    if isinstance(source, Path) or source.startswith((".", "/", "~")):
        raise ArgumentError(f"source={words.value(str(source))}: no such folder or file")
    return found(source, None if revision is None else text("revision", revision))


def _is_there(path: Path) -> bool:
    try:
        return path.is_dir() or path.is_file()
    except (OSError, ValueError):
        return False


def found(source: str, revision: str | None = None) -> Found:
    """The files of a dictionary, from the Hugging Face cache or downloaded: no more than it needs.

    Args:
      source: a name of the registry, ``release/id``; or ``organisation/repository``, with a path inside.
      revision: branch, tag or commit.

    Raises:
      ArgumentError: several dictionaries are meant, or this can be no name.
      DownloadError: there is none, or it cannot be had; the message says what to do, and what names are near.
    """
    repo, inside, entry = _meant(source)
    names = FILES.get(entry.format, ()) if entry else tuple(name for each in FILES.values() for name in each)
    try:
        folder = downloaded(repo, revision, _patterns(inside, names), "no folder or file")
    except DownloadError as error:
        raise DownloadError(f"{error}{_near(source)}") from None
    place = folder / inside
    if not place.is_file() and not any(any(place.glob(name)) for name in names):
        raise DownloadError(
            f"{words.name(source)}: no dictionary at {words.name(inside or '.')} of {repo}, neither in the "
            "Hugging Face cache nor, where it can be reached, on the hub; connect, or see the list of files "
            f"there{_near(source)}"
        )
    return Found(place, entry, _elsewhere(place))


def _meant(source: str) -> tuple[str, str, Entry | None]:
    """Repository and path that a name stands for, and what the registry says of them."""
    if entry := listed.by_name().get(source):
        return entry.repo, entry.path, entry
    first, *rest = source.split("/")
    if entries := listed.by_release().get(first):
        if rest:
            raise DownloadError(f"{words.name(source)}: not in the release {first}{_near(source)}")
        raise _several(source, entries)
    repo, inside = "/".join([first, *rest[:1]]), "/".join(rest[1:])
    if not _REPO.fullmatch(repo) or (inside and not _is_confined(inside)):
        raise ArgumentError(
            f"source={words.value(source)}: no folder or file, no name of the registry, and not "
            f"organisation/repository/path{_near(source)}"
        )
    known = listed.by_repo().get(repo, ())
    exact = [entry for entry in known if entry.path == inside]
    below = [entry for entry in known if not inside or entry.path.startswith(f"{inside}/")]
    if exact or len({entry.path for entry in below}) == 1:
        entry = (exact or below)[0]
        return repo, entry.path, entry
    if below:
        raise _several(source, below)
    return repo, inside, None


def _several(source: str, entries: Iterable[Entry]) -> ArgumentError:
    names = [entry.name for entry in entries]
    return ArgumentError(f"{words.name(source)}: {len(names)} dictionaries, name one: {words.some(names)}")


def _near(source: str) -> str:
    close = [] if source in listed.by_name() else listed.nearest(source)
    return f"; the nearest names of the registry: {words.some(close)}" if close else ""


def _is_confined(path: str) -> bool:
    """Whether a path stays below its folder, and holds nothing that a pattern would read otherwise."""
    return all(_PLAIN.fullmatch(part) and part not in (".", "..") for part in path.split("/"))


def _patterns(inside: str, names: Iterable[str]) -> list[str]:
    """What is fetched for a file or folder: itself, files in it of these names, and what lies beside it."""
    path = PurePosixPath(inside)
    below = [str(path / name) for name in names]
    if not inside:
        return below
    beside = (*_BESIDE, f"{path.stem}_cfg.json")
    return [inside, *below, *(str(path.parent / name) for name in beside)]


def _elsewhere(place: Path) -> dict[str, Path]:
    """Files of other repositories that a list of transcoders names, fetched."""
    config = place / _LISTS[0]
    if not config.is_file():
        return {}
    given = read_yaml(config, ConfigError).get("transcoders")
    places = [_place(each) for each in given] if isinstance(given, list) else []
    wanted: dict[tuple[str, str | None], dict[str, str]] = {}
    for name in places:
        match = _LISTED.fullmatch(name)
        # What is no such place is told of where the list is read.
        if match and _REPO.fullmatch(match[1]) and _is_confined(match[2]):
            wanted.setdefault((match[1], match[3]), {})[name] = match[2]
    fetched = dict[str, Path]()
    for (repo, revision), files in wanted.items():
        folder = downloaded(repo, revision, files.values(), "named by config.yaml")
        fetched |= {name: folder / file for name, file in files.items()}
    return fetched


def _place(given: Any) -> str:
    return str(given.get("filepath") if isinstance(given, dict) else given)
