"""A GGUF file as a model: its family, its config in the words of Hugging Face, its tensors."""

import contextlib
import dataclasses
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jmi.errors import CheckpointError, ConfigError, printable
from jmi_models.disk import words
from jmi_models.disk.tensors import Stored
from jmi_models.families import FAMILIES
from jmi_models.families.family import AnyArch, Family, UnreadFields
from jmi_models.gguf import configs
from jmi_models.gguf.architectures import ARCHITECTURES, MIXTRAL, Converted
from jmi_models.gguf.header import Header, read_header
from jmi_models.gguf.tensors import stored_of, summary

_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")
_MOST_PARTS = 1000


@dataclasses.dataclass(frozen=True)
class Model:
    """What a GGUF file holds.

    Attributes:
      files: it, or the parts that it was split into.
      metadata: of the first of them.
      family: with the key map of this file.
      config: as ``config.json`` of the model that it was made from would have it.
      tensors: every parameter by its name in the file.
      storage: in words, how they are stored.
    """

    files: tuple[Path, ...]
    metadata: Mapping[str, Any]
    family: Family
    config: Mapping[str, Any]
    tensors: Mapping[str, Stored]
    storage: str

    def arch(self) -> AnyArch:
        """The architecture; ConfigError names the file where its metadata is none of the family."""
        with _naming(self.files[0]):
            arch = self.family.from_config(self.config)
            fit = self.family.fit
            return arch if fit is None else fit(arch, self.family.keys(arch), self.tensors)


def open_model(file: Path) -> Model:
    """The model in ``file``; no tensor is read.

    Raises:
      CheckpointError: it is damaged, or a part of it is missing.
      ConfigError: it is of an architecture that is none of jmi's families.
    """
    headers = [read_header(part) for part in parts_of(file)]
    whole = _joined(headers)
    with _naming(file):
        read = configs.Reader(whole)
        converted = _converted(read)
        config = {"model_type": converted.family, **configs.common(read), **read.fields(converted.fields)}
        config |= converted.extra(read)
        every = read.get("rescale_every_n_layers") or 0
        turned = dataclasses.replace(converted.turned, rescaled=every)
        width = read.d_head if turned.halves else 1
    if unread := read.unread():
        warnings.warn(UnreadFields(unread, printable(file.name)), stacklevel=2)
    tensors: dict[str, Stored] = {}
    for header in headers:
        tensors |= stored_of(header, turned, width)
    keys, family = converted.keys(whole.tensors), FAMILIES[converted.family]
    family = dataclasses.replace(
        family, keys=lambda arch: keys, prefix="", ignored=(r"blk\.0\.time_mix_v\d\.weight",)
    )
    files = tuple(header.file for header in headers)
    return Model(files, whole.metadata, family, config, tensors, summary(whole))


def parts_of(file: Path) -> list[Path]:
    """The files into which a model was split, given any of them."""
    found = _PART.fullmatch(file.name)
    if found is None:
        return [file]
    stem, _, count = found.groups()
    if not 0 < int(count) <= _MOST_PARTS:
        raise CheckpointError(f"{printable(file.name)}: {int(count)} parts cannot be")
    parts = [file.with_name(f"{stem}-{i + 1:05}-of-{count}.gguf") for i in range(int(count))]
    if missing := [part.name for part in parts if not part.is_file()]:
        raise CheckpointError(f"{printable(file.name)}: parts are missing: {words.some(missing)}")
    return parts


def _joined(headers: list[Header]) -> Header:
    """One header with the tensors of all parts."""
    tensors = {name: entry for header in headers for name, entry in header.tensors.items()}
    if len(tensors) != sum(len(header.tensors) for header in headers):
        raise CheckpointError(f"{printable(headers[0].file.name)}: two parts hold the same tensor")
    return Header(headers[0].file, headers[0].metadata, tensors)


def _converted(read: configs.Reader) -> Converted:
    if read.arch not in ARCHITECTURES:
        raise ConfigError(
            f"architecture {words.value(read.arch)} is not supported; supported: {', '.join(ARCHITECTURES)}"
        )
    return MIXTRAL if read.arch == "llama" and read.get("expert_count") else ARCHITECTURES[read.arch]


@contextlib.contextmanager
def _naming(file: Path) -> Iterator[None]:
    """Errors about a config name the file that says it."""
    try:
        yield
    except ConfigError as error:
        text = str(error).removeprefix("config.json: ").replace("config.json", "its metadata")
        raise ConfigError(f"{printable(file.name)}: {text}") from None
