"""The RWKV World tokenizer: the longest token of a vocabulary file, byte after byte.

The file (``rwkv_vocab_v20230424.txt`` of BlinkDL's ChatRWKV) has one token a line, ``ID LITERAL LENGTH``:
a whole number, a Python literal of ``str`` (meaning its UTF-8 bytes) or ``bytes``, and the number of
bytes. There are no merges, no normalisation and no special tokens in text. Id 0 is not listed: models
are trained with it as the end of a text, and no text encodes to it.
"""

import ast
import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from jmi.errors import TokenizerError, printable
from jmi.reading import read_bytes

END_OF_TEXT = "<|endoftext|>"
_LARGEST_ID = 2**31 - 1  # jmi holds ids as int32


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Tokens of one text: ids, strings, and the ``(start, end)`` characters that each touches."""

    ids: list[int]
    tokens: list[str]
    offsets: list[tuple[int, int]]


class _Node(dict[int, "_Node"]):
    """The bytes read so far: which may follow, and the id of the token they spell, if any."""

    __slots__ = ("token",)

    def __init__(self) -> None:
        super().__init__()
        self.token: int | None = None


class World:
    """A World vocabulary, with the methods of ``tokenizers.Tokenizer`` that jmi uses.

    A token is shown as its text, with bytes that are not UTF-8, such as part of a character, as ``\\xe4``.

    Attributes:
      entries: id -> bytes of each token, distinct and not empty, as ``from_file`` ensures. Where they
        do not use id 0, it is the end of text, ``<|endoftext|>``.
    """

    def __init__(self, entries: Mapping[int, bytes]):
        self.entries = dict(entries)
        self._strings = {i: token.decode(errors="backslashreplace") for i, token in self.entries.items()}
        self._strings.setdefault(0, END_OF_TEXT)
        self._ids = {string: index for index, string in self._strings.items()}
        self._root = _trie(self.entries)

    @classmethod
    def from_file(cls, path: str | Path) -> "World":
        """Read a vocabulary file; lines may end in LF or CRLF.

        Raises:
          TokenizerError: the file cannot be read, or is not a vocabulary; names the file and the line.
        """
        path = Path(path)
        entries: dict[int, bytes] = {}
        lines_of: dict[object, int] = {}
        for number, line in enumerate(_lines(path), 1):
            place = f"{printable(path.name)} line {number}"
            index, token = _parse(line, place)
            for kind, value in (("id", index), ("token", token)):
                if value in lines_of:
                    raise TokenizerError(
                        f"{place}: {kind} {printable(repr(value))} is on line {lines_of[value]} too; drop one"
                    )
                lines_of[value] = number
            entries[index] = token
        return cls(entries)

    def save(self, path: str | Path) -> None:
        """Write the vocabulary file; reading it back gives the same entries."""
        lines = [f"{index} {_literal(token)} {len(token)}\n" for index, token in sorted(self.entries.items())]
        Path(path).write_bytes("".join(lines).encode())

    def get_vocab_size(self) -> int:
        """Largest id + 1, so that it bounds every id: id 0 and unused ids between count too.

        The logits of a model may be wider: 65,536, where the published file ends at id 65,529.
        """
        return max(self._strings) + 1

    def id_to_token(self, index: int) -> str | None:
        """The string that shows a token; None where no token has the id."""
        return self._strings.get(index)

    def token_to_id(self, token: str) -> int | None:
        """The id of the token so shown; None where there is none."""
        return self._ids.get(token)

    def encode(self, text: str, add_special_tokens: bool = True) -> Encoded:
        """Tokens of a text, each the longest that matches, in time linear in the text.

        A token that begins or ends inside a character has the whole character in its offsets.
        ``add_special_tokens`` has no effect: the World tokenizer adds none.

        Raises:
          TokenizerError: no token matches, or the text holds half of a surrogate pair.
        """
        try:
            data = text.encode()
        except UnicodeEncodeError as error:
            at = error.start
            raise TokenizerError(
                f"character {at} is {text[at]!r}, half of a surrogate pair; replace it"
            ) from None
        ids = self._longest_matches(data)
        lengths = [len(self.entries[index]) for index in ids]
        return Encoded(ids, [self._strings[index] for index in ids], _offsets(data, lengths))

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of token ids, without the end of text unless ``skip_special_tokens=False``.

        Bytes that are not UTF-8 become U+FFFD.

        Raises:
          TokenizerError: no token has one of the ids.
        """
        end_of_text = b"" if skip_special_tokens else END_OF_TEXT.encode()
        pieces = []
        for index in ids:
            if index not in self._strings:
                raise TokenizerError(f"no token has id {index}; ids are 0 to {self.get_vocab_size() - 1}")
            pieces.append(self.entries.get(index, end_of_text))
        return b"".join(pieces).decode(errors="replace")

    def _longest_matches(self, data: bytes) -> list[int]:
        """Ids of the tokens that make up ``data``; no byte is looked at oftener than tokens are long."""
        ids: list[int] = []
        start = 0
        while start < len(data):
            node, match = self._root, None
            for position in range(start, len(data)):
                following = node.get(data[position])
                if following is None:
                    break
                node = following
                if node.token is not None:
                    match, end = node.token, position + 1
            if match is None:
                raise TokenizerError(
                    f"no token matches at byte {start} of the text, 0x{data[start]:02X}; "
                    "use a vocabulary that lists every single byte"
                )
            ids.append(match)
            start = end
        return ids


def _trie(entries: Mapping[int, bytes]) -> _Node:
    """Every token of the vocabulary, spelt from the root."""
    root = _Node()
    for index, token in entries.items():
        node = root
        for byte in token:
            if byte not in node:
                node[byte] = _Node()
            node = node[byte]
        node.token = index
    return root


def _offsets(data: bytes, lengths: Sequence[int]) -> list[tuple[int, int]]:
    """The characters of UTF-8 ``data`` that each token touches, from the tokens' lengths in bytes."""
    begins_character = (np.frombuffer(data, np.uint8) & 0xC0) != 0x80
    character_of = np.cumsum(begins_character) - 1
    ends = np.cumsum(lengths, dtype=np.int64)
    starts = ends - np.asarray(lengths, np.int64)
    return list(zip(character_of[starts].tolist(), (character_of[ends - 1] + 1).tolist(), strict=True))


def _literal(token: bytes) -> str:
    """The Python literal of a token, as the published file has it: ``str`` wherever it is UTF-8."""
    try:
        return repr(token.decode())
    except UnicodeDecodeError:
        return repr(token)


def _lines(path: Path) -> list[str]:
    """Lines of a vocabulary file without their ends; a TokenizerError if it is no text or empty."""
    name = printable(path.name)
    data = read_bytes(path, TokenizerError)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        number = data.count(b"\n", 0, error.start) + 1
        raise TokenizerError(f"{name} line {number}: not UTF-8; save the file as UTF-8") from None
    if not text.strip():
        raise TokenizerError(f"{name} line 1: no entries; name a vocabulary file")
    # Not splitlines: literals may hold other characters that it takes for line ends.
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]


def _parse(line: str, place: str) -> tuple[int, bytes]:
    """Id and bytes of one line; ``place`` begins the message of a TokenizerError."""
    index, _, rest = line.partition(" ")
    literal, _, length = rest.rpartition(" ")
    if not (index and literal and length):
        raise TokenizerError(f"{place}: not three fields, ID LITERAL LENGTH, with spaces between; fix it")
    # Not int() alone: it takes "1_0" and digits of other scripts too.
    if not re.fullmatch("[0-9]{1,10}", index) or int(index) > _LARGEST_ID:
        raise TokenizerError(f"{place}: id {printable(index)} must be a whole number from 0 to {_LARGEST_ID}")
    token = _evaluate(literal, place)
    if not token:
        raise TokenizerError(f"{place}: an empty token would match anywhere; drop the line")
    if length != str(len(token)):
        raise TokenizerError(
            f"{place}: {printable(literal)} is {len(token)} bytes, not {printable(length)}; fix either"
        )
    return int(index), token


def _evaluate(literal: str, place: str) -> bytes:
    """Bytes of a ``str`` or ``bytes`` literal; anything else is a TokenizerError."""
    try:
        value = ast.literal_eval(literal)
        token = value.encode() if isinstance(value, str) else value
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):  # what malformed text raises
        token = None
    if not isinstance(token, bytes):
        raise TokenizerError(
            f"{place}: {printable(literal)} is not a literal of text or bytes, as 'text' or b'\\xff'"
        )
    return token
