"""The tokenizer of a model folder: which files it is in, and what they say."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

from jmi.errors import TokenizerError, printable
from jmi.reading import parse_object, read_if_there, read_object, read_text
from jmi.tokenizers import limits
from jmi.tokenizers.added import add_tokens
from jmi.tokenizers.kinds import class_of, kind_of, may_prefix
from jmi.tokenizers.spaces import prefixes, set_marked_prefix, set_prefix
from jmi.tokenizers.world import END_OF_TEXT, World

VOCABULARIES = "rwkv_vocab*.txt"
"""Names of vocabulary files of RWKV; the latest one of a folder is read."""

_OTHERS = ("*.model", "*.tiktoken", "tekken.json", "vocab.txt", "vocab.json", "merges.txt")

Backend = tokenizers.Tokenizer | World


def read(folder: Path) -> tuple[Backend, dict[str, int]] | None:
    """What turns text into tokens, and special tokens by name -> id; None where a folder has no tokenizer.

    Raises:
      TokenizerError: there are files of a tokenizer, but not valid ones, or of a kind that jmi cannot read.
    """
    if os.path.lexists(folder / "tokenizer.json"):
        return _hugging_face(folder, "tokenizer.json")
    if vocabularies := sorted(folder.glob(VOCABULARIES)):
        backend = World.from_file(vocabularies[-1])
        end = backend.token_to_id(END_OF_TEXT)
        return backend, {} if end is None else {"eos_token": end}
    if all(os.path.lexists(folder / name) for name in ("vocab.json", "merges.txt")):
        return _hugging_face(folder, "vocab.json")
    if others := sorted(path.name for pattern in _OTHERS for path in folder.glob(pattern)):
        raise TokenizerError(
            f"a tokenizer in {printable(', '.join(others))} alone is none that jmi reads; load it with "
            "transformers' AutoTokenizer and put the tokenizer.json that it saves into the folder, or "
            "run the model on token ids: jmi_models.load(..., tokenizer=False)"
        )
    return None


def _hugging_face(folder: Path, name: str) -> tuple[tokenizers.Tokenizer, dict[str, int]]:
    config = read_if_there(folder / "tokenizer_config.json", TokenizerError)
    model = read_if_there(folder / "config.json", TokenizerError)
    with limits.refusing(f"{name} is not a valid tokenizer"):
        if name == "tokenizer.json":
            text = read_text(folder / name, TokenizerError)
            limits.check_steps(parse_object(text, name, TokenizerError))
            backend = tokenizers.Tokenizer.from_str(text)
            named = class_of(config, model, '"ByteLevel"' in text)
        else:
            backend, named = _gpt2(folder, config, model), "GPT2Tokenizer"
        backend.no_padding()
        backend.no_truncation()
        _carry_out(backend, config, named)
        names = add_tokens(backend, folder, config, kind_of(named))
        if name == "vocab.json":
            backend.post_processor = _around(config, names, backend)
        limits.check_tokens(backend)
        _check_around(backend)
    return backend, _ids(backend, names)


def _carry_out(backend: tokenizers.Tokenizer, config: Mapping[str, Any], named: str) -> None:
    """What ``tokenizer_config.json`` says of the steps, as the class of the tokenizer reads it."""
    for key in ("add_prefix_space", "legacy", "split_special_tokens", "add_bos_token", "add_eos_token"):
        if not isinstance(config.get(key), bool | None):
            raise TokenizerError(f"tokenizer_config.json: {key} must be true or false; fix it")
    kind, given = kind_of(named), config.get("add_prefix_space")
    if may_prefix(named) and given is not None and given is not prefixes(backend):
        raise TokenizerError(
            f"tokenizer_config.json sets add_prefix_space for {named}, which jmi does not know; load it with "
            "transformers' AutoTokenizer, and put the tokenizer.json it saves into the folder"
        )
    if kind.prefix is not None:
        prefix = kind.prefix if given is None else given
        if kind.metaspace:
            set_marked_prefix(backend, prefix, bool(config.get("legacy")))
        else:
            set_prefix(backend, prefix)
    if kind.plain:
        backend.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
    backend.encode_special_tokens = bool(config.get("split_special_tokens"))


def _gpt2(folder: Path, config: Mapping[str, Any], model: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """A tokenizer of GPT-2's kind from ``vocab.json`` and ``merges.txt``.

    Raises:
      TokenizerError: the folder names another class, which would need other steps.
    """
    named = class_of(config, model, byte_level=False)
    if named not in ("GPT2Tokenizer", "TokenizersBackend"):
        raise TokenizerError(
            f"vocab.json with merges.txt is read for GPT2Tokenizer, not for {printable(named)}; load it with "
            "transformers' AutoTokenizer, save it there, and put the tokenizer.json it writes into the folder"
        )
    vocabulary = read_object(folder / "vocab.json", TokenizerError)
    lines = [line.removesuffix("\r") for line in read_text(folder / "merges.txt", TokenizerError).split("\n")]
    pairs = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    if not all(type(index) is int for index in vocabulary.values()):
        raise TokenizerError("vocab.json must map tokens to whole numbers; fix it")
    if not all(len(pair) == 2 for pair in pairs):
        raise TokenizerError("merges.txt must have two tokens a line; fix it")
    merges = [(left, right) for left, right in pairs]
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def _around(
    config: Mapping[str, Any], names: Mapping[str, str], backend: tokenizers.Tokenizer
) -> processors.PostProcessor:
    """Special tokens around a text by ``add_bos_token`` and ``add_eos_token``."""
    begin = [names["bos_token"]] if config.get("add_bos_token") and "bos_token" in names else []
    end = [names["eos_token"]] if config.get("add_eos_token") and "eos_token" in names else []
    tokens = [(text, backend.token_to_id(text)) for text in {*begin, *end}]
    return processors.TemplateProcessing(
        single=[*begin, "$A", *end], pair=[*begin, "$A", *end, *begin, "$B", *end], special_tokens=tokens
    )


def _check_around(backend: tokenizers.Tokenizer) -> None:
    """Refuse a post-processor that puts ids around a text which are no tokens."""
    around = backend.encode("", add_special_tokens=True).ids
    foreign = [index for index in around if index > limits.LARGEST_ID or backend.id_to_token(index) is None]
    if foreign:
        raise ValueError(f"its post_processor adds id {foreign[0]}, which is no token; fix it")


def _ids(backend: tokenizers.Tokenizer, names: Mapping[str, str]) -> dict[str, int]:
    """Special tokens by name -> id."""
    found = {name: backend.token_to_id(text) for name, text in names.items()}
    return {name: index for name, index in found.items() if index is not None}
