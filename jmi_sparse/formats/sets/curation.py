"""Curation lists of circuit-tracer: a YAML file that says where the transcoder of each layer is."""

import re
import warnings
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qs, urlsplit

from jmi.errors import ConfigError, JmiError
from jmi_models.disk import words
from jmi_sparse.formats.reading.yaml_files import read_yaml
from jmi_sparse.formats.sets.circuit_tracer_config import PLT

_LAYER = re.compile(r"layer_(\d{1,4})(?!\d)", re.ASCII)
_PART = re.compile(r"[\w.+\-]{1,200}", re.ASCII)


def is_list(file: Path, kind: str) -> bool:
    """Whether a YAML file is such a list, of transcoders of one kind; by default those are of one layer."""
    try:
        given = read_yaml(file, ConfigError) if file.is_file() else {}
    except JmiError:
        return False
    return "transcoders" in given and given.get("model_kind", PLT) == kind


def resolved(
    folder: Path, listed: Mapping[int, str], name: str, fetched: Mapping[str, Path]
) -> dict[int, Path]:
    """The files of a list, by layer.

    ``hf://owner/repo/path`` that was not ``fetched`` is looked for in ``owner/repo/path`` below the folder,
    and another place as it is, below it too.

    Raises:
      ConfigError: a place that is no such path, or that two layers share; or files that are not there, with
        what to download.
    """
    found = dict[int, Path]()
    problems, lacking, odd = list[str](), list[str](), list[str]()
    for layer, place in listed.items():
        parts, revision = _parts(place)
        if parts is None:
            problems.append(f"{words.value(place)} is no path below this folder")
            continue
        said = [int(match[1]) for part in parts if (match := _LAYER.match(part))]
        if said and layer not in said:
            odd.append(f"{words.value(place)} stands where layer {layer} is")
        found[layer] = fetched.get(place, folder.joinpath(*parts))
        if not found[layer].is_file():
            lacking.append(_download(place, parts, revision))
    if len(set(found.values())) != len(found):
        problems.append("two layers have the same file")
    if lacking and not problems:
        problems.append(f"{len(lacking)} of {len(listed)} files are not here; {'; '.join(lacking[:5])}")
    if problems:
        raise ConfigError(f"{words.name(name)}: transcoders: " + "; ".join(problems))
    if odd:
        warnings.warn(
            f"{words.name(name)}: the place in the list says which layer a transcoder is of, and names of "
            f"files say another: {'; '.join(odd[:5])}",
            stacklevel=5,
        )
    return found


def _parts(place: str) -> tuple[tuple[str, ...] | None, str | None]:
    """The parts of a path, each a plain name, and the revision asked for; None where it is no path."""
    revision, path = None, place
    if place.startswith("hf://"):
        try:
            split = urlsplit(place)
        except ValueError:
            return None, None
        revision = parse_qs(split.query).get("revision", [None])[0]
        path = split.netloc + split.path
    parts = PurePosixPath(path).parts
    least = 3 if place.startswith("hf://") else 1
    plain = all(_PART.fullmatch(part) and part not in (".", "..") for part in parts)
    return (parts if plain and len(parts) >= least else None), revision


def _download(place: str, parts: tuple[str, ...], revision: str | None) -> str:
    if not place.startswith("hf://"):
        return f"put {words.name('/'.join(parts))} there"
    owner, repo, *rest = parts
    at = f" --revision {words.name(revision)}" if revision else ""
    return f"hf download {owner}/{repo} {'/'.join(rest)}{at} --local-dir {owner}/{repo}"
