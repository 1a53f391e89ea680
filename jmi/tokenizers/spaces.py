"""``add_prefix_space``: whether a text is read as if a space stood before it."""

import json
from collections.abc import Iterator
from typing import Any

import tokenizers
from tokenizers import decoders, pre_tokenizers

from jmi.errors import TokenizerError

_NESTED = ("pretokenizers", "normalizers")
_MARK = "▁"


def steps(component: Any) -> Iterator[dict[str, Any]]:
    """The steps of a part of a tokenizer, such as its normalizer, as its file writes them, in order."""
    if component is not None:
        yield from _flat(json.loads(component.__getstate__()))


def _flat(step: dict[str, Any]) -> Iterator[dict[str, Any]]:
    nested = [inner for key in _NESTED for inner in step.get(key, ())]
    if not nested:
        yield step
    for inner in nested:
        yield from _flat(inner)


def prefixes(backend: tokenizers.Tokenizer) -> bool:
    """Whether the tokenizer reads a text as if a space stood before it."""
    return any(
        step.get("add_prefix_space") is True or step.get("prepend_scheme") in ("always", "first")
        for step in steps(backend.pre_tokenizer)
    ) or any(step["type"] == "Prepend" for step in steps(backend.normalizer))


def set_prefix(backend: tokenizers.Tokenizer, prefix: bool) -> None:
    """Have a tokenizer that works on bytes read texts with a space before them, or without.

    Raises:
      TokenizerError: a space is asked for, and the tokenizer has no step that could add it.
    """
    if backend.pre_tokenizer is None or not any(
        s["type"] == "ByteLevel" for s in steps(backend.pre_tokenizer)
    ):
        if prefix:
            raise TokenizerError(
                "tokenizer_config.json sets add_prefix_space, and tokenizer.json has no ByteLevel step that "
                "could add it; drop the key, or give the class TokenizersBackend"
            )
        return
    state = json.loads(backend.pre_tokenizer.__getstate__())
    changed = [step for step in _flat(state) if step.get("add_prefix_space", prefix) is not prefix]
    if changed:
        for step in changed:
            step["add_prefix_space"] = prefix
        backend.pre_tokenizer = _pre_tokenizer(state)


def _pre_tokenizer(state: dict[str, Any]) -> pre_tokenizers.PreTokenizer:
    """A pre-tokenizer from what files write: the library reads whole tokenizers only."""
    whole = {"model": {"type": "BPE", "vocab": {}, "merges": []}, "pre_tokenizer": state}
    return tokenizers.Tokenizer.from_str(json.dumps(whole)).pre_tokenizer


def set_marked_prefix(backend: tokenizers.Tokenizer, prefix: bool, legacy: bool) -> None:
    """The same for a Llama tokenizer, which writes spaces as "▁": with one before the text, or without.

    Args:
      legacy: put the space after every special token too, not only before the text.
    """
    written = {(s["type"], s.get("prepend"), s.get("content")) for s in steps(backend.normalizer)}
    split = [(s["type"], s.get("replacement"), s.get("split")) for s in steps(backend.pre_tokenizer)]
    llama = {("Prepend", _MARK, None), ("Replace", None, _MARK)}
    if not (written <= llama and split in ([], [("Metaspace", _MARK, False)]) and (written or split)):
        return  # other steps than a Llama tokenizer's: those of the file stand
    scheme = ("always" if legacy else "first") if prefix else "never"
    backend.normalizer = None
    backend.pre_tokenizer = pre_tokenizers.Metaspace(_MARK, scheme, split=False)
    strip = [decoders.Strip(content=" ", left=1)] if prefix else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace(_MARK, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
