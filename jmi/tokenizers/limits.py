"""What a tokenizer may take: bounds on its tokens, on the text it makes, and no failure but TokenizerError.

Steps of a ``tokenizer.json`` can multiply a text (replacing "a" by ten of them, seven times, makes 10 MB of
one letter), and its patterns can search without end; the library stops such a search by a panic, which is
no ``Exception`` in Python. The time of a search is bounded for each place in a text, not for all of them.
"""

import base64
import contextlib
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import tokenizers

from jmi.errors import JmiError, TokenizerError, printable

MOST_BYTES = 2**26
"""Bytes that a text may become on its way to tokens or back, 64 MiB, by the worst the steps can do."""

MOST_GROWTH = 4096
LARGEST_ID = 2**31 - 1  # jmi holds ids as int32
LONGEST_TOKEN = 4096
LONGEST_UNKNOWN = 256  # stands in for every single character that is not known

# How many bytes the step makes of one, at most; those absent make one. Unicode's own figures for its forms.
_GROWTH = {
    **dict.fromkeys(("NFC", "NFD", "Lowercase"), 3),
    **dict.fromkeys(("NFKC", "NFKD"), 11),
    "BertNormalizer": 6,
    "ByteLevel": 4,
    "Metaspace": 8,
}
_FORWARD = ("normalizer", "pre_tokenizer", "post_processor")
_NESTED = ("normalizers", "pretokenizers", "processors", "decoders")


@contextlib.contextmanager
def refusing(what: str) -> Iterator[None]:
    """Turn whatever the library raises, panics included, into a TokenizerError that begins with ``what``."""
    try:
        yield
    except JmiError:
        raise
    except BaseException as error:
        # Panics of Rust derive from BaseException, and their class cannot be imported.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise TokenizerError(f"{what} ({printable(error)})") from None


def check_steps(file: Mapping[str, Any]) -> None:
    """Refuse steps that multiply a text, before the library takes them: it runs them on added tokens.

    Args:
      file: ``tokenizer.json``.

    Raises:
      ValueError: with the reason, for `refusing` to tell.
    """
    try:
        most = _most(file)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"its steps are malformed ({type(error).__name__}: {printable(error)})") from None
    if most > MOST_GROWTH:
        raise ValueError(
            f"its steps can make a text more than {MOST_GROWTH:,} times as long; use another one"
        )


def check_tokens(backend: tokenizers.Tokenizer) -> None:
    """Refuse a vocabulary that is none: no tokens, two of one id, endless ones, ids by chance.

    Raises:
      ValueError: with the reason, for `refusing` to tell.
    """
    tokens = backend.get_vocab()
    if not tokens:
        raise ValueError("the vocabulary is empty; use a tokenizer that has tokens")
    if len(set(tokens.values())) < len(tokens):
        raise ValueError("two tokens have the same id; fix the vocabulary")
    if max(tokens.values()) > LARGEST_ID:
        raise ValueError(f"ids must be at most {LARGEST_ID}; fix the vocabulary")
    longest = max(tokens, key=len)
    if len(longest) > LONGEST_TOKEN:
        raise ValueError(f"token {printable(longest, 20)} is longer than {LONGEST_TOKEN} characters")
    if len(str(getattr(backend.model, "unk_token", None) or "")) > LONGEST_UNKNOWN:
        raise ValueError(f"the unknown token is longer than {LONGEST_UNKNOWN} characters")
    if getattr(backend.model, "dropout", None):
        raise ValueError("its model has dropout, so its ids are random; set dropout to null")


def growth(backend: tokenizers.Tokenizer) -> int:
    """Bytes that one byte of a text, or of its tokens, can become by the steps of a tokenizer."""
    parts = {name: getattr(backend, name) for name in (*_FORWARD, "decoder")}
    return _most({name: part and json.loads(part.__getstate__()) for name, part in parts.items()})


def _most(file: Mapping[str, Any]) -> int:
    forward = math.prod(_growth(file[name]) for name in _FORWARD if file.get(name))
    return max(forward, _growth(file["decoder"]) if file.get("decoder") else 1)


def _growth(step: Mapping[str, Any]) -> int:
    for key in _NESTED:
        if key in step:
            return math.prod(map(_growth, step[key]))
    match step["type"]:
        case "Replace":
            # A pattern may match nothing at all, before and after every character.
            found, made = step["pattern"].get("String", ""), len(step["content"].encode())
            return max(1, -(-made // len(found.encode()))) if found else 1 + 2 * made
        case "Prepend":
            return 1 + len(step["prepend"].encode())
        case "Precompiled":
            return 1 + _longest_replacement(step["precompiled_charsmap"])
        case "TemplateProcessing":
            return max(1, len(step["single"]))
    return _GROWTH.get(step["type"], 1)


def _longest_replacement(charsmap: str) -> int:
    """Bytes of the longest text in sentencepiece's map: length of a trie, the trie, texts that end in 0."""
    data = base64.b64decode(charsmap)
    texts = data[4 + int.from_bytes(data[:4], "little") :]
    return max(map(len, texts.split(b"\0")))
