"""The tokenizer a person holds: texts to token ids and back."""

import dataclasses
import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

import jmi.tokenizers as parts  # each of them imported when a tokenizer is read
from jmi.artefacts import replacing, write_json
from jmi.checks import shown
from jmi.errors import TokenizerError, printable

if TYPE_CHECKING:
    from jmi.tokenizers.folder import Backend


@dataclasses.dataclass(frozen=True)
class Encoding:
    """Tokens of one text with the characters each covers.

    Attributes:
      ids: int32 ``[s]``.
      tokens: their strings as the vocabulary spells them.
      offsets: ``(start, end)`` of each in the text, in characters (code points); special tokens
        cover nothing, (0, 0).
    """

    ids: np.ndarray
    tokens: tuple[str, ...]
    offsets: tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True)
class Batch:
    """Several texts padded to one length.

    Attributes:
      tokens: int32 ``[b, s]``.
      mask: bool ``[b, s]``, True at real tokens.
    """

    tokens: np.ndarray
    mask: np.ndarray


class Tokenizer:
    """A tokenizer read from a model folder; special tokens are added as its file says.

    A text may become at most `limits.MOST_BYTES` bytes by the steps of the tokenizer: 16 MB of text with the
    byte-level steps of GPT-2, less where the steps could make more of it.

    Attributes:
      pad_id: what fills padding; its value never matters, since padding is masked.
      special: names such as ``bos_token`` -> id.
      chat_templates: name -> Jinja template, as text; "default" is the one that has no name. None
        is run before `jmi.tokenizers.chat.render` is asked to.
    """

    def __init__(
        self, backend: "Backend", special: dict[str, int], chat_templates: Mapping[str, str] | None = None
    ):
        self._backend = backend
        self._growth = 1 if isinstance(backend, parts.world.World) else parts.limits.growth(backend)
        self.special = special
        self.chat_templates = dict(chat_templates or {})
        self.pad_id = special.get("pad_token", special.get("eos_token", 0))

    @classmethod
    def from_folder(cls, folder: Path) -> "Tokenizer | None":
        """Tokenizer of a model folder; None when it ships none.

        Read are ``tokenizer.json``, else ``rwkv_vocab*.txt``, else ``vocab.json`` with ``merges.txt`` (of
        GPT-2's kind), with the special tokens and ``add_prefix_space`` of ``tokenizer_config.json`` and the
        files beside it, as transformers 5.24 reads them: with a ``tokenizer.json``, ``add_bos_token`` and
        ``add_eos_token`` have no effect, since that file says what stands around a text. Chat templates are
        those of ``chat_template.jinja`` and ``additional_chat_templates``, else of ``tokenizer_config.json``.

        Raises:
          TokenizerError: files are there but not valid, or of a kind that jmi does not read.
        """
        found = parts.folder.read(folder)
        return None if found is None else cls(*found, parts.templates.read(folder))

    def save(self, folder: Path) -> None:
        """Write ``tokenizer.json`` and ``tokenizer_config.json`` with the special tokens; or a vocabulary.

        Chat templates go into ``tokenizer_config.json``.
        """
        templates = parts.templates.as_config(self.chat_templates)
        if isinstance(self._backend, parts.world.World):
            with replacing(folder / parts.VOCABULARIES.replace("*", "")) as temporary:
                self._backend.save(temporary)
            if templates:
                write_json(folder / "tokenizer_config.json", templates)
            return
        with replacing(folder / "tokenizer.json") as temporary:
            self._backend.save(str(temporary))
        # The class that takes the file as it is; and for models whose class does not, what it would change.
        config: dict[str, Any] = {"tokenizer_class": "TokenizersBackend"}
        config["add_prefix_space"] = parts.spaces.prefixes(self._backend)
        config["split_special_tokens"] = self._backend.encode_special_tokens
        write_json(folder / "tokenizer_config.json", config | self.special_texts | templates)

    @property
    def n_vocab(self) -> int:
        """Number of tokens, added ones included."""
        return int(self._backend.get_vocab_size())

    @property
    def special_texts(self) -> dict[str, str]:
        """Special tokens as the vocabulary spells them, by names such as ``bos_token``."""
        return {name: self._piece(index) for name, index in self.special.items()}

    def encode(self, text: str, special_tokens: bool = True) -> np.ndarray:
        """Token ids int32 ``[s]``; with the special tokens that ``tokenizer.json`` adds, or without.

        Raises:
          TokenizerError: not a text, too long a text, or one that the tokenizer cannot encode.
        """
        return np.asarray(self._encoded(text, special_tokens).ids, np.int32)

    def encode_with_offsets(self, text: str, special_tokens: bool = True) -> Encoding:
        """Tokens with the character range each covers."""
        found = self._encoded(text, special_tokens)
        return Encoding(np.asarray(found.ids, np.int32), tuple(found.tokens), tuple(found.offsets))

    def encode_batch(
        self, texts: Sequence[str], padding: Literal["left", "right"], special_tokens: bool = True
    ) -> Batch:
        """Texts padded on the named side to the longest of them, with the mask of real tokens."""
        if padding not in ("left", "right"):
            raise TokenizerError(f"padding={printable(repr(padding))}; use 'left' or 'right'")
        if isinstance(texts, str | bytes) or not isinstance(texts, Sequence | np.ndarray):
            raise TokenizerError(f"texts must be a list of texts, not {type(texts).__name__}; use [text]")
        if not len(texts):
            raise TokenizerError("no texts to encode; give at least one")
        rows = [self.encode(text, special_tokens) for text in texts]
        longest = max(len(row) for row in rows)
        tokens = np.full((len(rows), longest), self.pad_id, np.int32)
        mask = np.zeros(tokens.shape, bool)
        for i, row in enumerate(rows):
            place = slice(longest - len(row), None) if padding == "left" else slice(0, len(row))
            tokens[i, place], mask[i, place] = row, True
        return Batch(tokens, mask)

    def decode(self, ids: Sequence[int] | np.ndarray, special_tokens: bool = True) -> str:
        """Text of one row of token ids; special tokens kept unless ``special_tokens=False``.

        Raises:
          TokenizerError: not whole numbers, several rows, an id without a token, or too long a text.
        """
        row = _row(ids)
        length = sum(len(self._piece(index)) for index in row)
        if length * self._growth > parts.limits.MOST_BYTES:
            raise TokenizerError(f"{len(row):,} ids are too many to decode at once; decode them in parts")
        with parts.limits.refusing("these ids cannot be decoded"):
            return str(self._backend.decode(row, skip_special_tokens=not special_tokens))

    def has(self, index: int) -> bool:
        """Whether there is a token of this id; models often have more rows than that."""
        index = _whole(index)
        return 0 <= index <= parts.limits.LARGEST_ID and self._backend.id_to_token(index) is not None

    def token_string(self, index: int) -> str:
        """One token as text, a leading space kept (unlike ``decode``, which may strip it)."""
        piece = self._piece(_whole(index))
        text = self.decode([index])
        # How these vocabularies write a space; one of RWKV's shows its tokens as they are.
        marked = piece.startswith(("Ġ", "▁")) and not isinstance(self._backend, parts.world.World)
        return f" {text}" if marked and not text.startswith(" ") else text

    def token_id(self, word: str) -> int:
        """The id of ``word`` as a single token: with a leading space if that is one, else as given.

        Raises:
          TokenizerError: the word is several tokens either way.
        """
        if not isinstance(word, str) or not word.strip():
            raise TokenizerError(f"{shown(word)} is not a word; name one token")
        spaced = self.encode(" " + word.removeprefix(" "), special_tokens=False)
        bare = self.encode(word, special_tokens=False)
        for ids in (spaced, bare):
            if len(ids) == 1:
                return int(ids[0])
        pieces = [self.token_string(i) for i in spaced[:20]]
        raise TokenizerError(
            f"{printable(repr(word))} is not one token but {len(spaced)}: {printable(pieces)}; choose a word "
            f"that is one token, such as its first piece {pieces[:1]}"
        )

    def _encoded(self, text: str, special_tokens: bool) -> Any:
        if not isinstance(text, str):
            raise TokenizerError(f"only a text can be encoded, not {type(text).__name__}; give a str")
        most = parts.limits.MOST_BYTES // self._growth
        if len(text) > most or len(text.encode(errors="replace")) > most:
            raise TokenizerError(
                f"a text of {len(text):,} characters is too long, this tokenizer takes at most "
                f"{most:,} bytes; encode it in parts"
            )
        with parts.limits.refusing("this text cannot be encoded"):
            return self._backend.encode(text, add_special_tokens=special_tokens)

    def _piece(self, index: int) -> str:
        """How the vocabulary spells a token."""
        if not self.has(index):
            raise TokenizerError(f"no token has id {index}; ids are 0 to {self.n_vocab - 1}")
        return str(self._backend.id_to_token(index))


def _row(ids: Any) -> list[int]:
    """One row of ids as a list; a row of one, or one in a batch of one, will do."""
    try:
        array = np.asarray(ids)
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise TokenizerError(f"ids must be one row of whole numbers ({printable(error)})") from None
    if array.size and array.dtype.kind not in "iu":
        raise TokenizerError(f"ids must be whole numbers, not {array.dtype}; convert them")
    if array.ndim > 1 and array.shape[-1] != array.size:
        raise TokenizerError(f"ids must be one row, not an array {list(array.shape)}; decode row by row")
    return [int(index) for index in array.reshape(-1)]


def _whole(index: Any) -> int:
    """An id as an int: no float, no text."""
    try:
        return operator.index(index)
    except TypeError:
        raise TokenizerError(
            f"an id must be a whole number, not {type(index).__name__} {printable(repr(index), 40)}"
        ) from None
