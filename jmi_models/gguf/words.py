"""The tokens that the metadata of a GGUF file lists, checked: they come from strangers."""

import dataclasses
import enum
import re
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np

from jmi.errors import TokenizerError, printable

PREFIX = "tokenizer.ggml."
_MOST_TOKENS = 1 << 22  # the largest published vocabularies have some 262,144
_MOST_ADDED = 1 << 20  # characters of all added tokens together; Gemma 3 has 80,000
_NO_TOKEN = 2**32 - 1  # what -1 becomes in a file

T = TypeVar("T")


class Type(enum.IntEnum):
    """What a token is."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


SURROGATES = re.compile("[\ud800-\udfff]")
"""What bytes that are not UTF-8 leave in a text."""

_NAMES = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "eot_token": "eot_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
    "sep_token": "seperator_token_id",  # the key is spelt so
    "mask_token": "mask_token_id",
}


def value(metadata: Mapping[str, Any], key: str, kind: type[T]) -> T | None:
    """The value of ``tokenizer.ggml.KEY``; None where there is none.

    Raises:
      TokenizerError: it is of another type.
    """
    found = metadata.get(PREFIX + key)
    if found is None or type(found) is kind:
        return found
    raise TokenizerError(f"{PREFIX}{key} must be {kind.__name__}, not {type(found).__name__}; {FIX}")


FIX = "convert the model to GGUF again, or run it on token ids: jmi_models.load(..., tokenizer=False)"


@dataclasses.dataclass(frozen=True)
class Words:
    """The vocabulary of a file.

    Attributes:
      texts: id -> text of each token; distinct. Tokens are left out that only fill the table up to the rows
        of the model: converters mark those as unused, older ones as unknown, of which a model has one.
      types: a `Type` of each id, those left out too.
      named: names such as ``bos_token`` -> id.
    """

    texts: Mapping[int, str]
    types: np.ndarray
    named: Mapping[str, int]

    def added(self) -> dict[int, bool]:
        """Ids of tokens that are found in a text before all else -> whether they are special."""
        special = set(np.flatnonzero(self.types == Type.CONTROL).tolist())
        special |= {index for name, index in self.named.items() if name != "eot_token"}
        ids = special | set(np.flatnonzero(self.types == Type.USER_DEFINED).tolist())
        return {index: index in special for index in sorted(ids) if index in self.texts}


def words_of(metadata: Mapping[str, Any], defaults: Mapping[str, int]) -> Words:
    """The vocabulary that ``metadata`` lists.

    Args:
      defaults: ids by name where it does not say them.

    Raises:
      TokenizerError: what it lists is no vocabulary.
    """
    texts = _texts(metadata, "tokens")
    if texts is None or not 0 < len(texts) <= _MOST_TOKENS:
        raise TokenizerError(f"{PREFIX}tokens must have 1 to {_MOST_TOKENS:,} texts; {FIX}")
    types = numbers(metadata, "token_type", len(texts), "iu")
    if types is None:
        types = np.full(len(texts), Type.NORMAL)
    strange = ~np.isin(types, list(Type))
    if strange.any():
        raise TokenizerError(f"{PREFIX}token_type has {types[strange][0]}, which is no type; {FIX}")
    named = _named(metadata, len(texts), defaults)
    filling = np.isin(types, (Type.UNUSED, Type.UNKNOWN))
    filling[list(named.values())] = False
    used = {
        i: text
        for i, (text, fills) in enumerate(zip(texts, filling.tolist(), strict=True))
        if text and not fills
    }
    words = Words(used, types, named)
    _check(words)
    return words


def merges_of(metadata: Mapping[str, Any], texts: Mapping[int, str]) -> list[tuple[str, str]]:
    """Pairs of tokens in the order in which they are merged.

    Args:
      texts: of each token, by id.

    Raises:
      TokenizerError: there are none, or one is not of two tokens that make a third.
    """
    lines = _texts(metadata, "merges")
    if lines is None:
        raise TokenizerError(f"{PREFIX}merges is missing; {FIX}")
    known = set(texts.values())
    merges = []
    for index, line in enumerate(lines):
        left, space, right = line.partition(" ")
        if not (space and left in known and right in known and left + right in known):
            raise TokenizerError(
                f"{PREFIX}merges: entry {index}, {printable(repr(line), 60)}, is not two tokens that "
                f"make a third; {FIX}"
            )
        merges.append((left, right))
    return merges


def numbers(metadata: Mapping[str, Any], key: str, count: int, kinds: str) -> np.ndarray | None:
    """The array ``tokenizer.ggml.KEY``, of one number for each token; None where there is none."""
    found = metadata.get(PREFIX + key)
    if found is None:
        return None
    if not isinstance(found, np.ndarray) or found.dtype.kind not in kinds or found.shape != (count,):
        raise TokenizerError(f"{PREFIX}{key} must have one number for each of {count:,} tokens; {FIX}")
    return found


def _texts(metadata: Mapping[str, Any], key: str) -> list[str] | None:
    found = metadata.get(PREFIX + key)
    if found is None or (isinstance(found, list) and all(isinstance(text, str) for text in found)):
        return found
    raise TokenizerError(f"{PREFIX}{key} must be an array of texts; {FIX}")


def _named(metadata: Mapping[str, Any], count: int, defaults: Mapping[str, int]) -> dict[str, int]:
    named = {}
    for name, key in _NAMES.items():
        index = value(metadata, key, int)
        if index is None and defaults.get(name, count) < count:
            index = defaults[name]
        if index is None or index == _NO_TOKEN:
            continue
        if not 0 <= index < count:
            raise TokenizerError(f"{PREFIX}{key} is {index}, and ids are 0 to {count - 1}; {FIX}")
        named[name] = index
    return named


def _check(words: Words) -> None:
    seen: dict[str, int] = {}
    for index, text in words.texts.items():
        if seen.setdefault(text, index) != index:
            raise TokenizerError(
                f"{PREFIX}tokens: ids {seen[text]} and {index} are both {printable(repr(text), 60)}; {FIX}"
            )
        if not text.isascii() and SURROGATES.search(text):
            raise TokenizerError(f"{PREFIX}tokens: id {index} is not UTF-8; {FIX}")
    for name, index in words.named.items():
        if index not in words.texts:
            raise TokenizerError(f"{PREFIX}{_NAMES[name]} is {index}, an empty token; {FIX}")
    length = sum(len(words.texts[index]) for index in words.added())
    if length > _MOST_ADDED:
        raise TokenizerError(
            f"{PREFIX}token_type: control tokens of {length:,} characters in all, more than the "
            f"{_MOST_ADDED:,} that are read; {FIX}"
        )
