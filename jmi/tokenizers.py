"""Text to tokens and back, through a Hugging Face ``tokenizer.json`` or a vocabulary of RWKV."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import tokenizers

from jmi.artefacts import replacing, write_json
from jmi.errors import TokenizerError
from jmi.world import END_OF_TEXT, World

VOCABULARIES = "rwkv_vocab*.txt"
"""Names of vocabulary files of RWKV; the latest one of a folder is read."""


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

    Attributes:
      pad_id: what fills padding; its value never matters, since padding is masked.
      special: names such as ``bos_token`` -> id, from ``tokenizer_config.json``.
    """

    def __init__(self, backend: tokenizers.Tokenizer | World, special: dict[str, int]):
        self._backend = backend
        self.special = special
        self.pad_id = special.get("pad_token", special.get("eos_token", 0))

    @classmethod
    def from_folder(cls, folder: Path) -> "Tokenizer | None":
        """Tokenizer of a model folder; None when it ships none.

        Raises:
          TokenizerError: the file is there but not valid.
        """
        file = folder / "tokenizer.json"
        if not file.is_file():
            vocabularies = sorted(folder.glob(VOCABULARIES))
            return cls._world(vocabularies[-1]) if vocabularies else None
        try:
            backend = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:
            raise TokenizerError(f"{file.name} is not a valid tokenizer ({error})") from None
        backend.no_padding()
        backend.no_truncation()
        return cls(backend, _special_ids(backend, folder / "tokenizer_config.json"))

    @classmethod
    def _world(cls, file: Path) -> "Tokenizer":
        backend = World.from_file(file)
        end = backend.token_to_id(END_OF_TEXT)
        return cls(backend, {} if end is None else {"eos_token": end})

    def save(self, folder: Path) -> None:
        """Write ``tokenizer.json`` and ``tokenizer_config.json`` with the special tokens; or a vocabulary."""
        if isinstance(self._backend, World):
            with replacing(folder / VOCABULARIES.replace("*", "")) as temporary:
                self._backend.save(temporary)
            return
        with replacing(folder / "tokenizer.json") as temporary:
            self._backend.save(str(temporary))
        names = {name: self._backend.id_to_token(index) for name, index in self.special.items()}
        write_json(folder / "tokenizer_config.json", names)

    @property
    def n_vocab(self) -> int:
        """Number of tokens, added ones included."""
        return int(self._backend.get_vocab_size())

    def encode(self, text: str, special_tokens: bool = True) -> np.ndarray:
        """Token ids int32 ``[s]``; with the special tokens that ``tokenizer.json`` adds, or without."""
        return np.asarray(self._backend.encode(text, add_special_tokens=special_tokens).ids, np.int32)

    def encode_with_offsets(self, text: str, special_tokens: bool = True) -> Encoding:
        """Tokens with the character range each covers."""
        found = self._backend.encode(text, add_special_tokens=special_tokens)
        return Encoding(np.asarray(found.ids, np.int32), tuple(found.tokens), tuple(found.offsets))

    def encode_batch(
        self, texts: Sequence[str], padding: Literal["left", "right"], special_tokens: bool = True
    ) -> Batch:
        """Texts padded on the named side to the longest of them, with the mask of real tokens."""
        if padding not in ("left", "right"):
            raise TokenizerError(f"padding={padding!r}; use 'left' or 'right'")
        if not texts:
            raise TokenizerError("no texts to encode")
        rows = [self.encode(text, special_tokens) for text in texts]
        longest = max(len(row) for row in rows)
        tokens = np.full((len(rows), longest), self.pad_id, np.int32)
        mask = np.zeros(tokens.shape, bool)
        for i, row in enumerate(rows):
            place = slice(longest - len(row), None) if padding == "left" else slice(0, len(row))
            tokens[i, place], mask[i, place] = row, True
        return Batch(tokens, mask)

    def decode(self, ids: Sequence[int] | np.ndarray, special_tokens: bool = True) -> str:
        """Text of token ids; special tokens kept unless ``special_tokens=False``."""
        ids = [int(i) for i in np.asarray(ids).reshape(-1)]
        return str(self._backend.decode(ids, skip_special_tokens=not special_tokens))

    def has(self, index: int) -> bool:
        """Whether there is a token of this id; models often have more rows than that."""
        return self._backend.id_to_token(int(index)) is not None

    def token_string(self, index: int) -> str:
        """One token as text, a leading space kept (unlike ``decode``, which may strip it)."""
        piece = self._backend.id_to_token(int(index))
        if piece is None:
            raise TokenizerError(f"no token has id {int(index)}; ids are 0 to {self.n_vocab - 1}")
        text = self.decode([index])
        # How these vocabularies write a space; one of RWKV's shows its tokens as they are.
        marked = piece.startswith(("Ġ", "▁")) and not isinstance(self._backend, World)
        return f" {text}" if marked and not text.startswith(" ") else text

    def token_id(self, word: str) -> int:
        """The id of ``word`` as a single token: with a leading space if that is one, else as given.

        Raises:
          TokenizerError: the word is several tokens either way.
        """
        if not word.strip():
            raise TokenizerError(f"{word!r} is not a word; name one token")
        spaced = self.encode(" " + word.removeprefix(" "), special_tokens=False)
        bare = self.encode(word, special_tokens=False)
        for ids in (spaced, bare):
            if len(ids) == 1:
                return int(ids[0])
        pieces = [self.token_string(i) for i in spaced]
        raise TokenizerError(
            f"{word!r} is not one token but {len(spaced)}: {pieces}; choose a word that is one token, "
            f"such as its first piece {pieces[:1]}"
        )


def _special_ids(backend: tokenizers.Tokenizer, file: Path) -> dict[str, int]:
    """``bos_token`` and the like, by id. Without a tokenizer_config.json there are none."""
    if not file.is_file():
        return {}
    try:
        config = json.loads(file.read_text())
    except ValueError as error:
        raise TokenizerError(f"{file.name} is not valid JSON: {error}") from None
    if not isinstance(config, dict):
        raise TokenizerError(f"{file.name} must hold an object")
    found = {}
    for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
        token = config.get(name)
        text = token.get("content") if isinstance(token, dict) else token
        index = backend.token_to_id(text) if isinstance(text, str) else None
        if index is not None:
            found[name] = index
    return found
