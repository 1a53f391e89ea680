"""RWKV's World vocabulary in a GGUF file, which spells bytes as Python does."""

import re

from jmi.errors import TokenizerError
from jmi.tokenizers.world import World
from jmi_models.gguf.words import FIX, PREFIX, Type, Words

_MOST = 1 << 21  # characters of all tokens together; the published vocabulary has about half of that
_ESCAPE = re.compile(r"\\(?:x([0-9a-f]{2})|([\\'\"nrt]))")
_ESCAPED = {"\\": "\\", "'": "'", '"': '"', "n": "\n", "r": "\r", "t": "\t"}


def world_of(words: Words) -> World:
    """The World vocabulary that ``words`` lists.

    Raises:
      TokenizerError: a token is not spelt so, or is there twice, or is of another kind than these have.
    """
    if sum(map(len, words.texts.values())) > _MOST:
        raise TokenizerError(f"{PREFIX}tokens have more than {_MOST:,} characters in all; {FIX}")
    entries: dict[int, bytes] = {}
    ids: dict[bytes, int] = {}
    for index, text in words.texts.items():
        if words.types[index] == Type.NORMAL and index:
            token = _unescaped(index, text)
            if token in ids:
                raise TokenizerError(f"{PREFIX}tokens: ids {ids[token]} and {index} are the same; {FIX}")
            ids[token], entries[index] = index, token
        elif index:
            raise TokenizerError(f"{PREFIX}token_type: id {index} must be an ordinary token; {FIX}")
    return World(entries)


def _unescaped(index: int, text: str) -> bytes:
    plain = _ESCAPE.sub("", text)
    if not plain.isascii() or "\\" in plain:
        raise TokenizerError(f"{PREFIX}tokens: id {index} is not spelt as bytes of Python are; {FIX}")
    made = _ESCAPE.sub(lambda found: chr(int(found[1], 16)) if found[1] else _ESCAPED[found[2]], text)
    return made.encode("latin-1")
