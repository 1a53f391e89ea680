"""Special and added tokens that stand beside ``tokenizer.json``, numbered as transformers numbers them.

Transformers 5 adds, in this order: the tokens of ``added_tokens_decoder`` by their ids, or without it those
of ``added_tokens.json`` and ``tokenizer.json``; the named ones (``bos_token``, ``image_token``, ...); the
extra ones. A token that the vocabulary holds keeps its id there, a new one gets the next free id, whatever
number the files give it.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken

from jmi.errors import TokenizerError, printable
from jmi.reading import read_if_there
from jmi.tokenizers.kinds import Kind

NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_EXTRA = ("extra_special_tokens", "additional_special_tokens")


@dataclasses.dataclass
class _Said:
    """What the files say: tokens with their ids, by name, and without one."""

    numbered: dict[int, AddedToken]
    named: dict[str, str | AddedToken]
    extra: list[str | AddedToken]


def add_tokens(
    backend: tokenizers.Tokenizer, folder: Path, config: Mapping[str, Any], kind: Kind
) -> dict[str, str]:
    """Make every token that the files of a folder name one token of ``backend``.

    Args:
      config: ``tokenizer_config.json``.
      kind: gives special tokens where the files name none.

    Returns:
      name -> text of the tokens with one of `NAMES`.

    Raises:
      TokenizerError: a token of a wrong type; names the file.
    """
    said = _said(backend, folder, config, kind.special)
    by_text = {token.content: token for token in said.numbered.values()}
    adding = [token for _, token in sorted(said.numbered.items())]
    known = {token.content for token in backend.get_added_tokens_decoder().values()} | set(by_text)
    for token in (*said.named.values(), *said.extra):
        text = _text(token)
        if text not in known:
            known.add(text)
            adding.append(AddedToken(token, special=True) if isinstance(token, str) else token)
    names = {name: _text(token) for name, token in said.named.items()}
    for token in adding:
        token.special = token.special or token.content in names.values()
    backend.add_tokens(adding)
    if kind.bare:
        extra = map(_text, said.extra)
        backend.add_tokens([AddedToken(text, special=True) for text in (*names.values(), *extra)])
    return {name: text for name, text in names.items() if name in NAMES}


def _said(
    backend: tokenizers.Tokenizer, folder: Path, config: Mapping[str, Any], defaults: Mapping[str, str]
) -> _Said:
    place = "tokenizer_config.json"
    said, extra = dict(config), config.get(_EXTRA[0]) or config.get(_EXTRA[1]) or []
    _check_extra(extra, place)
    if "added_tokens_decoder" in config:
        numbered = _numbered(config["added_tokens_decoder"], place)
    else:
        special = read_if_there(folder / "special_tokens_map.json", TokenizerError)
        said |= special
        for name in _EXTRA:
            _check_extra(special.get(name) or [], "special_tokens_map.json")
        extra = _merged(extra, special.get(_EXTRA[0]) or [])
        numbered = _legacy(folder, said, extra) | dict(backend.get_added_tokens_decoder())
        extra = extra or special.get(_EXTRA[1]) or []
    named: Any = dict(defaults) | {
        key: value for key, value in said.items() if key in NAMES or _is_named(key, value)
    }
    if isinstance(extra, dict):
        named, extra = named | extra, []
    ordered = [*NAMES, *(key for key in named if key not in NAMES)]
    given = {key: named[key] for key in ordered if named.get(key) is not None}
    return _Said(
        numbered,
        {key: _token(value, f"{place}: {printable(key)}") for key, value in given.items()},
        [_token(value, f"{place}: {_EXTRA[0]}") for value in extra],
    )


def _check_extra(extra: Any, place: str) -> None:
    if not isinstance(extra, list | dict):
        raise TokenizerError(f"{place}: {_EXTRA[0]} must be a list or an object; fix it")


def _merged(extra: Any, more: Any) -> Any:
    """Extra tokens of ``tokenizer_config.json``, and those of ``special_tokens_map.json``."""
    if isinstance(extra, list) and isinstance(more, list):
        return [*extra, *(token for token in more if token not in extra)]
    return more or extra


def _numbered(given: Any, place: str) -> dict[int, AddedToken]:
    if not isinstance(given, dict):
        raise TokenizerError(f"{place}: added_tokens_decoder must be an object, id -> token; fix it")
    found = {}
    for index, token in given.items():
        whole = index.isdecimal() and index.isascii() and len(index) <= 10
        if not whole or not isinstance(token, dict):
            raise TokenizerError(
                f"{place}: added_tokens_decoder must map ids to objects, not {printable(index)}; fix it"
            )
        found[int(index)] = _object(token, f"{place}: added_tokens_decoder {index}")
    return found


def _legacy(folder: Path, said: Mapping[str, Any], extra: Any) -> dict[int, AddedToken]:
    """Tokens of ``added_tokens.json``, text -> id; special where they are named elsewhere."""
    special = {_text(value) for value in (*map(said.get, NAMES), *extra) if value}
    found = {}
    for text, index in read_if_there(folder / "added_tokens.json", TokenizerError).items():
        if type(index) is not int or index < 0:
            raise TokenizerError(
                f"added_tokens.json: the id of {printable(repr(text))} must be a whole number from 0; fix it"
            )
        found[index] = AddedToken(text, normalized=text not in special, special=text in special)
    return found


def _is_named(key: str, value: Any) -> bool:
    """Whether a key names a token of the model's own, such as ``image_token``."""
    return key.endswith("_token") and isinstance(value, str)


def _token(value: Any, place: str) -> str | AddedToken:
    """A special token as files write it: text, or an object with its text and flags."""
    if isinstance(value, str):
        return value
    return _object({"special": True, **value} if isinstance(value, dict) else value, place)


def _object(value: Any, place: str) -> AddedToken:
    if isinstance(value, dict):
        flags = {flag: value[flag] for flag in _FLAGS if flag in value}
        text = value.get("content")
        if isinstance(text, str) and all(isinstance(flag, bool) for flag in flags.values()):
            return AddedToken(text, **flags)
    raise TokenizerError(f"{place} must be a text, or an object with content and flags; fix it")


def _text(token: Any) -> str:
    """The text of a token in any form."""
    if isinstance(token, AddedToken):
        return token.content
    return str(token.get("content")) if isinstance(token, dict) else str(token)
