"""Which format a path holds a dictionary in, and which of the paths below a folder that is."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

from jmi.errors import ArgumentError, CheckpointError
from jmi_models.disk import words
from jmi_sparse.dictionaries.kinds import AnyDictionary
from jmi_sparse.formats.reading.asked import Asked

_DEEPEST, _MOST = 6, 20_000
"""How far below a folder a dictionary is looked for, and among how many files."""


class Format(Protocol):
    """A module for one format."""

    def matches(self, path: Path) -> bool:
        """Whether a file or folder is a dictionary in this format, from names and small files alone."""
        ...

    def read(self, path: Path, asked: Asked) -> AnyDictionary:
        """The dictionary at a path that matches; errors as of `jmi_sparse.load`."""
        ...


def recognised(path: Path, formats: Mapping[str, Format]) -> tuple[str, Path]:
    """The format of a dictionary at or below ``path``, and where it lies.

    A file may be one of the files of a folder. Below a folder that is no dictionary itself, the only one that
    there is is taken.

    Raises:
      ArgumentError: several are there.
      CheckpointError: none is.
    """
    for place in (path, path.parent) if path.is_file() else (path,):
        for name, each in formats.items():
            if each.matches(place):
                return name, place
    found = (
        [] if path.is_file() else [(n, p) for p in _below(path) for n, f in formats.items() if f.matches(p)]
    )
    # A folder that is a dictionary is found before the files in it.
    outer = [(n, p) for n, p in found if not any(q in p.parents for _, q in found)]
    places = sorted({p for _, p in outer})
    if len(places) > 1:
        listed = words.some([str(place.relative_to(path)) for place in places])
        raise ArgumentError(f"{path}: several dictionaries are here, name one: {listed}")
    if not places:
        there = words.some(sorted(p.name for p in (path.parent if path.is_file() else path).iterdir()))
        raise CheckpointError(
            f"{path}: no format of dictionaries that is known ({', '.join(formats)}); found "
            f"{there or 'nothing'}"
        )
    return outer[0]


def _below(folder: Path) -> Iterator[Path]:
    """Folders and files below, links to folders not followed."""
    seen = 0
    for where, folders, files in os.walk(folder):
        if len(Path(where).relative_to(folder).parts) >= _DEEPEST:
            folders.clear()
        folders.sort()
        for name in (*folders, *sorted(files)):
            seen += 1
            if seen > _MOST:
                return
            yield Path(where) / name
