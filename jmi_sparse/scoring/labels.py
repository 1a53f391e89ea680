"""`labels`: what features are about, in words, from a file."""

import csv
import dataclasses
import gzip
import io
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jmi.checks import shown
from jmi.errors import ArgumentError, ConfigError, printable
from jmi.reading import LARGEST_FILE, parse_object, read_bytes
from jmi_models.disk import words

MOST = 4_000_000
"""Labels that are held."""

LONGEST = 300
"""Letters of a label; a longer one is cut and ends in dots."""

_SHOWN, _LARGEST_ID = 5, 2**31 - 1
_LAYER, _INDEX = ("layer",), ("index", "feature", "id", "feature_id")
_TEXT = ("description", "label", "text", "explanation")


@dataclasses.dataclass(frozen=True)
class Labels:
    """Labels of features.

    Attributes:
      texts: (layer, feature) -> text; the layer is None where a file does not say it.

    Example:
      >>> import jmi_sparse
      >>> about = jmi_sparse.Labels({(3, 17): "capitals of countries"})
      >>> about.get(3, 17), about.get(3, 18, "not known")
      ('capitals of countries', 'not known')
    """

    texts: Mapping[tuple[int | None, int], str]

    def get(self, layer: int | None, feature: int, default: str | None = None) -> str | None:
        """The label of a feature; of a file that does not say layers, whatever the layer is."""
        return self.texts.get((layer, feature), self.texts.get((None, feature), default))

    def __len__(self) -> int:
        return len(self.texts)

    def __repr__(self) -> str:
        layers = {layer for layer, _ in self.texts if layer is not None}
        return f"Labels({len(self):,} features of {len(layers) or 'unnamed'} layers)"


def labels(source: str | Path, *, only: str | None = None) -> Labels:
    """Labels of features from a file, or from all such files of a folder; each may be compressed, ``.gz``.

    ``.json``: ``{"3:17": text}`` by layer and feature, or ``{"17": text}`` where all are of one layer; or the
    list of explanations of a Neuronpedia export, bare or under ``explanations``. ``.jsonl``: an explanation
    in each line. ``.csv``: a row for each, with a first line of names. An explanation has an ``index`` (or
    ``feature``, ``id``), a ``description`` (or ``label``, ``text``, ``explanation``) and may have a
    ``layer``: a number, or Neuronpedia's ``5-res-jb``, of which the layer is 5 and the set ``res-jb``.

    Of several labels of a feature the first is kept, and one without text is left out. Labels are put in one
    line of at most 300 letters, with nothing that a terminal would obey.

    Args:
      only: the set to read, where a file has those of several dictionaries of one layer.

    Raises:
      ArgumentError: no such file or folder; several sets of one layer, and none chosen; no label at all.
      ConfigError: all that is wrong in a file: no JSON, no such columns, no id; or too much of it.

    Example:
      >>> import pathlib, tempfile, jmi_sparse
      >>> path = pathlib.Path(tempfile.mkdtemp(), "labels.json")
      >>> _ = path.write_text('{"3:17": "capitals of countries"}')
      >>> jmi_sparse.labels(path).get(3, 17)
      'capitals of countries'
    """
    if not isinstance(source, (str, Path)) or not str(source):
        raise ArgumentError(f"source={shown(source)}: give the path of a file")
    if only is not None and (not isinstance(only, str) or not only):
        raise ArgumentError(f"only={shown(only)}: give the name of a set, such as 'res-jb'")
    texts: dict[tuple[int | None, int], str] = {}
    sets: dict[int | None, set[str]] = {}
    for path in _files(Path(source).expanduser()):
        for layer, own, index, text in _read(path):
            if only in (None, own):
                sets.setdefault(layer, set()).add(own)
                texts.setdefault((layer, index), text)
        if len(texts) > MOST:
            raise ConfigError(f"{words.name(path.name)}: more than {MOST:,} labels; give fewer")
    mixed = next((layer for layer, names in sets.items() if len(names) > 1), None)
    if mixed is not None:
        raise ArgumentError(
            f"layer {mixed} has labels of several dictionaries: {words.some(sorted(sets[mixed]))}; "
            "choose one with only="
        )
    if not texts:
        which = "" if only is None else f" of the set {words.name(only)}"
        raise ArgumentError(f"source={words.value(str(source))}: there is no label{which}; give another")
    return Labels(texts)


def _files(path: Path) -> list[Path]:
    try:
        if path.is_dir():
            return [each for each in sorted(path.iterdir()) if _kind(each) in _READERS]
        if path.is_file():
            return [path]
    except (OSError, ValueError):
        pass
    raise ArgumentError(f"source={words.value(str(path))}: no such file or folder; download the labels first")


def _kind(path: Path) -> str:
    """``.json``, ``.jsonl`` or ``.csv``, without ``.gz``."""
    return Path(path.name.removesuffix(".gz")).suffix


def _read(path: Path) -> Iterator[tuple[int | None, str, int, str]]:
    """(layer, set, index, text) of each label in a file."""
    name, reader = words.name(path.name), _READERS.get(_kind(path))
    if reader is None:
        raise ArgumentError(f"{name}: labels are read from {', '.join(_READERS)}, which may end in .gz")
    content = read_bytes(path, ConfigError)
    if path.name.endswith(".gz"):
        content = _expanded(content, name)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name} is not UTF-8 at byte {error.start}; save it as UTF-8") from None
    problems: list[str] = []
    for place, entry in reader(text, name):
        found = _label(entry, place, problems)
        if found is not None and not problems:
            yield found
    if problems:
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise ConfigError(f"{name}: {'; '.join(problems[:_SHOWN])}{more}")


def _expanded(content: bytes, name: str) -> bytes:
    try:
        with gzip.open(io.BytesIO(content)) as file:
            found = file.read(LARGEST_FILE + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"{name} cannot be expanded: {printable(error)}; download it again") from None
    if len(found) > LARGEST_FILE:
        raise ConfigError(f"{name} holds more than the {LARGEST_FILE:,} bytes that are read; split it")
    return found


Entries = Iterator[tuple[str, Mapping[str, Any]]]
"""Where each label stands, for messages, and its fields."""


def _of_json(text: str, name: str) -> Entries:
    if text.lstrip().startswith("["):
        text = f'{{"explanations": {text}}}'
    found = parse_object(text, name, ConfigError)
    listed = found.get("explanations")
    if isinstance(listed, list):
        yield from _numbered("entry", listed)
        return
    for key, value in found.items():
        layer, colon, index = key.rpartition(":")
        entry = {"index": index, "description": value}
        yield words.name(key), entry | ({"layer": layer} if colon else {})


def _of_lines(text: str, name: str) -> Entries:
    for i, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield f"line {i}", parse_object(line, f"{name}, line {i}", ConfigError)


def _of_table(text: str, name: str) -> Entries:
    try:
        yield from _numbered("row", csv.DictReader(io.StringIO(text, newline="")))
    except csv.Error as error:
        raise ConfigError(f"{name} is no table: {printable(error)}; save it as CSV") from None


def _numbered(kind: str, entries: Iterable[Any]) -> Entries:
    for i, entry in enumerate(entries, 1):
        yield f"{kind} {i}", entry if isinstance(entry, Mapping) else {}


_READERS = {".json": _of_json, ".jsonl": _of_lines, ".csv": _of_table}


def _label(
    entry: Mapping[str, Any], place: str, problems: list[str]
) -> tuple[int | None, str, int, str] | None:
    """A label from its fields; None where there is no text, or something is wrong, which is noted."""
    layer, index, text = (_first(entry, names) for names in (_LAYER, _INDEX, _TEXT))
    if not any(name in entry for name in _TEXT):
        problems.append(f"{place} has no {_TEXT[0]}")
    elif text is not None and not isinstance(text, str):
        problems.append(f"{place}: {words.value(text)} is no text")
    number, (at, own) = _whole(index), _layer(layer)
    if number is None:
        problems.append(f"{place}: {words.value(index)} is no id of a feature")
    if layer not in (None, "") and at is None:
        problems.append(f"{place}: {words.value(layer)} is no layer")
    if problems or number is None or not isinstance(text, str) or not text.strip():
        return None
    return at, own, number, printable(" ".join(text.split()), LONGEST)


def _first(entry: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((entry[name] for name in names if name in entry), None)


def _whole(value: Any) -> int | None:
    """An id, from a number or its digits."""
    if isinstance(value, str) and re.fullmatch(r"\s*\d{1,10}\s*", value, re.ASCII):
        value = int(value)
    fits = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _LARGEST_ID
    return value if fits else None


def _layer(value: Any) -> tuple[int | None, str]:
    """The layer of ``5`` or ``5-res-jb``, and the name of the set."""
    layer, _, own = value.partition("-") if isinstance(value, str) else (value, "", "")
    return _whole(layer), own
