"""The tokenizer of a GGUF file, from its metadata alone.

What it gives is the model's own tokenizer, as its ``tokenizer.json`` has it. What a GGUF file cannot say is
as transformers 5.24 has it for such files; where it says nothing of the BOS token, as llama.cpp.
"""

import functools
import json
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import tokenizers

from jmi.errors import TokenizerError, printable
from jmi.tokenizers import Tokenizer, limits, templates
from jmi.tokenizers.folder import Backend
from jmi_models.gguf import pretokens, sentencepiece
from jmi_models.gguf.pretokens import MARKS, Pretokens, Step
from jmi_models.gguf.sentencepiece import SPACE
from jmi_models.gguf.words import FIX, PREFIX, SURROGATES, Words, merges_of, numbers, value, words_of
from jmi_models.gguf.worlds import world_of

_TEMPLATE = "tokenizer.chat_template"
_UNREAD = ("remove_extra_whitespaces", "normalizer.lowercase", "normalizer.strip_accents")
_LLAMA_IDS = {"unk_token": 0, "bos_token": 1, "eos_token": 2}
_DECODER: Step = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
_PHI3_KEEPS_SPACE = ("<unk>", "<s>", "<|endoftext|>")


def tokenizer_of(metadata: Mapping[str, Any]) -> Tokenizer | None:
    """The tokenizer that ``metadata`` describes, with its chat templates as text; None where there is none.

    Control tokens are special, user-defined ones are not; both are found in a text before all else. Tokens
    that only fill the table up to the rows of the model are left out. A text begins with the BOS token, or
    ends with EOS, where the file says so; where it does not say, as is usual for its kind.

    It can mislead where a file leaves out what its model's ``tokenizer.json`` says: whether special tokens
    swallow spaces beside them, whether "▁" is put before a text that begins with a space, and steps of
    models that llama.cpp does not tell apart.

    Raises:
      TokenizerError: a kind of tokenizer that jmi does not read, or metadata that is none.
    """
    kind = value(metadata, "model", str)
    if kind is None:
        return None
    readers: Mapping[str, Callable[[Mapping[str, Any], Words], Backend]] = {
        "gpt2": _bytes,
        "gemma4": functools.partial(_pieces, scored=False),
        "llama": _pieces,
        "rwkv": lambda _, words: world_of(words),
    }
    if kind not in readers:
        raise TokenizerError(
            f"{PREFIX}model is {printable(repr(kind))}, and jmi reads {', '.join(readers)}; run the model on "
            "token ids: jmi_models.load(..., tokenizer=False)"
        )
    for key in _UNREAD:
        if value(metadata, key, bool):
            raise TokenizerError(f"{PREFIX}{key} is true, which is not read for {kind}; {FIX}")
    found = _chat_templates(metadata)
    with limits.refusing("the tokenizer of this GGUF file is not valid"):
        words = words_of(metadata, _LLAMA_IDS if kind == "llama" else {})
        return Tokenizer(readers[kind](metadata, words), dict(words.named), found)


def _chat_templates(metadata: Mapping[str, Any]) -> dict[str, str]:
    found = {}
    for key, text in metadata.items():
        if key == _TEMPLATE or key.startswith(_TEMPLATE + "."):
            if not isinstance(text, str) or SURROGATES.search(text):
                raise TokenizerError(f"{printable(key)} must be a text in UTF-8; {FIX}")
            found[key.removeprefix(_TEMPLATE).removeprefix(".") or templates.DEFAULT] = text
    return found


def _bytes(metadata: Mapping[str, Any], words: Words) -> tokenizers.Tokenizer:
    """GPT-2's kind: merges of letters that stand for bytes."""
    found = _pretokens(metadata)
    if found.marked:
        return _pieces(metadata, words, found.begins, scored=False)
    if value(metadata, "add_space_prefix", bool):
        warnings.warn(
            f"{PREFIX}add_space_prefix is true, and tokenizers on bytes do not read it: texts are read "
            "without a space before them, as llama.cpp does",
            stacklevel=3,
        )
    return _backend(
        words,
        words.texts,
        {"merges": merges_of(metadata, words.texts), "ignore_merges": found.whole},
        {
            "normalizer": found.normalizer,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": found.steps},
            "post_processor": _around(metadata, words, found.begins),
            "decoder": _DECODER,
        },
    )


def _pretokens(metadata: Mapping[str, Any]) -> Pretokens:
    name = value(metadata, "pre", str)
    if name in (None, "", "default"):
        warnings.warn(
            f"{PREFIX}pre does not say how texts are cut before merging: tokens are those of llama.cpp, and "
            "may differ from those the model was trained with; convert the model to GGUF again",
            stacklevel=4,
        )
        return pretokens.DEFAULT
    if name not in pretokens.PRETOKENS:
        raise TokenizerError(f"{PREFIX}pre is {printable(repr(name))}, which jmi does not know; {FIX}")
    return pretokens.PRETOKENS[name]


def _pieces(
    metadata: Mapping[str, Any], words: Words, begins: bool = True, scored: bool = True
) -> tokenizers.Tokenizer:
    """SentencePiece's kind: merges of characters, with "▁" for a space.

    Args:
      begins: a text begins with BOS where the file does not say whether it does.
      scored: the file may have scores instead of merges, and where it does not say whether there is a space
        before a text, there is.
    """
    if metadata.get(PREFIX + "precompiled_charsmap") is not None:
        raise TokenizerError(f"{PREFIX}precompiled_charsmap is not read for this kind; {FIX}")
    texts = sentencepiece.respelt(words)
    if scored and PREFIX + "merges" not in metadata:
        scores = numbers(metadata, "scores", len(words.types), "fiu")
        if scores is None:
            raise TokenizerError(f"{PREFIX}scores is missing; {FIX}")
        merges = sentencepiece.merges(texts, words.types, scores)
    else:
        merges = merges_of(metadata, texts)
    unknown = words.named.get("unk_token", -1)
    prefix = value(metadata, "add_space_prefix", bool)
    phi3 = metadata.get("general.architecture") == "phi3"
    return _backend(
        words,
        texts,
        {"merges": merges, "unk_token": texts.get(unknown), "fuse_unk": True, "byte_fallback": True},
        {
            **_piece_steps(scored if prefix is None else prefix, phi3),
            "post_processor": _around(metadata, words, begins),
        },
        swallow=phi3,
    )


def _piece_steps(prefix: bool, phi3: bool) -> dict[str, Any]:
    """How spaces become "▁" and back; with ``prefix`` there is one before a text.

    transformers puts none before a text that begins with a space, except for Phi-3.
    """
    decoders: list[Step] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if not prefix:
        return {"normalizer": MARKS, "decoder": {"type": "Sequence", "decoders": decoders}}
    decoder = {
        "type": "Sequence",
        "decoders": [*decoders, {"type": "Strip", "content": " ", "start": 1, "stop": 0}],
    }
    if phi3:
        steps = [{"type": "Prepend", "prepend": SPACE}, MARKS]
        return {"normalizer": {"type": "Sequence", "normalizers": steps}, "decoder": decoder}
    metaspace = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "first", "split": False}
    return {"pre_tokenizer": metaspace, "decoder": decoder}


def _around(metadata: Mapping[str, Any], words: Words, begins: bool) -> Step:
    """The step that puts BOS and EOS around a text."""
    asked = {"bos": value(metadata, "add_bos_token", bool), "eos": value(metadata, "add_eos_token", bool)}
    missing = [end for end, flag in asked.items() if flag and f"{end}_token" not in words.named]
    if missing:
        raise TokenizerError(
            f"{PREFIX}add_{missing[0]}_token is true, and no {missing[0]}_token_id is given; {FIX}"
        )
    begins = "bos_token" in words.named and (begins if asked["bos"] is None else asked["bos"])
    first = [words.named["bos_token"]] if begins else []
    last = [words.named["eos_token"]] if asked["eos"] else []
    before, after = (
        [{"SpecialToken": {"id": words.texts[index], "type_id": 0}} for index in ids] for ids in (first, last)
    )
    text, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    return {
        "type": "TemplateProcessing",
        "single": [*before, text, *after],
        "pair": [*before, text, *after, *before, second, *after],
        "special_tokens": {
            words.texts[index]: {"id": words.texts[index], "ids": [index], "tokens": [words.texts[index]]}
            for index in {*first, *last}
        },
    }


def _backend(
    words: Words,
    texts: Mapping[int, str],
    model: Mapping[str, Any],
    steps: Mapping[str, Any],
    swallow: bool = False,
) -> tokenizers.Tokenizer:
    """A tokenizer of the library, as from what a ``tokenizer.json`` of it would say.

    Tokens and merges are handed over as they are: to read those of Gemma from JSON takes three times as long,
    and a quarter of a gigabyte that the process does not give back.

    Args:
      texts: of each token that is used, by id.
      swallow: special tokens take the spaces after them, as those of Phi-3 do.
    """
    added: dict[bool, list[tokenizers.AddedToken]] = {True: [], False: []}
    for index, special in words.added().items():
        text = texts[index]
        rstrip = swallow and text not in _PHI3_KEEPS_SPACE
        added[special].append(tokenizers.AddedToken(text, rstrip=rstrip, normalized=False, special=special))
    limits.check_steps(steps)
    empty = {"type": "BPE", "vocab": {}, "merges": []}
    backend = tokenizers.Tokenizer.from_str(json.dumps({"version": "1.0", **steps, "model": empty}))
    vocab = {text: index for index, text in texts.items()}
    backend.model = tokenizers.models.BPE(vocab=vocab, **model)
    backend.add_special_tokens(added[True])
    backend.add_tokens(added[False])
    limits.check_tokens(backend)
    return backend
