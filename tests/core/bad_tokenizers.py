"""Tokenizer files that are broken or meant to do harm, made at random from one that is right."""

import copy
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

from tests.core import tokenizer_folders as folders

Files = dict[str, bytes]

NO_TEXTS = (None, True, -1, 2**31, 2**32, 2**64, 10**400, 1.5, float("inf"), [], {}, [[]], {"a": {}})
TEXTS = ("", "\x1b[31m", "\ud800", "x" * 5000, "<|bos|>")
PATTERNS = (
    *(
        "(a+)+$",
        "(a|a)*b",
        "(?:a?){64}a{64}",
        "(a*)*b|a",
        r"(?<x>a\g<x>?)*b",
        "(",
        "[",
        "a{999999}",
        "",
        r"\9",
    ),
    *("(?<=a*)b", "(((a{1000}){1000}){1000})b", "(" * 9000, "(?i:" + "a" * 9000 + ")", r"(a)\1*(\1|a)*$"),
)


def right() -> dict[str, Any]:
    """A folder whose side files name nothing that ``tokenizer.json`` has not."""
    tokenizer = folders.on_bytes()
    tokenizer.add_special_tokens(list(folders.NAMED.values()))
    tokenizer.post_processor = folders.TEMPLATE
    own = json.loads(tokenizer.to_str())["added_tokens"]
    decoder = {str(token["id"]): {k: v for k, v in token.items() if k != "id"} for token in own}
    return {
        "tokenizer.json": json.loads(tokenizer.to_str()),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "add_prefix_space": False,
            "add_bos_token": True,
            "extra_special_tokens": ["<|pad|>"],
            "added_tokens_decoder": decoder,
            **folders.NAMED,
        },
    }


def legacy() -> dict[str, Any]:
    """The same with the files of old versions."""
    files = right()
    del files["tokenizer_config.json"]["added_tokens_decoder"]
    files["special_tokens_map.json"] = {"pad_token": folders.token("<|pad|>"), "bos_token": "<|bos|>"}
    files["added_tokens.json"] = {"<|bos|>": 0, "<|eos|>": 1}
    files["config.json"] = {"model_type": "llama"}
    return files


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container of a JSON value with every key; of a vocabulary only a few."""
    keys = (
        list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    )
    for key in keys[:6]:
        yield value, key
        yield from _places(value[key])


def _encoded(files: dict[str, Any]) -> Files:
    return {name: json.dumps(content).encode() for name, content in files.items()}


def _wrong_type(rng: random.Random, files: dict[str, Any], name: str) -> Files:
    container, key = rng.choice(list(_places(files[name])))
    # Another text would be another tokenizer, not a bad one, except in tokenizer.json, which says it all.
    container[key] = rng.choice(NO_TEXTS + (TEXTS if name == "tokenizer.json" else ()))
    return _encoded(files)


def _missing_key(rng: random.Random, files: dict[str, Any], name: str) -> Files:
    container, key = rng.choice(list(_places(files["tokenizer.json"])))
    del container[key]
    return _encoded(files)


def _same_id(rng: random.Random, files: dict[str, Any], name: str) -> Files:
    vocabulary = files["tokenizer.json"]["model"]["vocab"]
    first, second = rng.sample(list(vocabulary), 2)
    vocabulary[first] = vocabulary[second]
    return _encoded(files)


def _pattern(rng: random.Random, files: dict[str, Any], name: str) -> Files:
    pattern = {"Regex": rng.choice(PATTERNS)}
    if rng.random() < 0.5:
        split = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
        files["tokenizer.json"]["pre_tokenizer"] = split
    else:
        files["tokenizer.json"]["normalizer"] = {"type": "Replace", "pattern": pattern, "content": "a"}
    return _encoded(files)


def _multiplying(rng: random.Random, files: dict[str, Any], name: str) -> Files:
    replace = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 10}
    part, key, step = rng.choice(
        (
            ("normalizer", "normalizers", replace),
            ("decoder", "decoders", replace),
            ("normalizer", "normalizers", {"type": "Prepend", "prepend": "a" * 50}),
            ("pre_tokenizer", "pretokenizers", {"type": "ByteLevel", **_BYTE_LEVEL}),
            ("post_processor", "processors", {**files["tokenizer.json"]["post_processor"], "single": _MANY}),
        )
    )
    files["tokenizer.json"][part] = {"type": "Sequence", key: [step] * 40}
    files["tokenizer.json"]["added_tokens"][0]["normalized"] = True  # the library runs steps on such tokens
    files["tokenizer.json"]["added_tokens"][0]["content"] = "aaa"
    return _encoded(files)


_BYTE_LEVEL = {"add_prefix_space": True, "trim_offsets": True, "use_regex": False}
_MANY = [{"Sequence": {"id": "A", "type_id": 0}}] * 30


def _bytes(rng: random.Random, files: dict[str, Any], name: str) -> Files:
    encoded = _encoded(files)
    content, at = encoded[name], rng.randrange(len(encoded[name]))
    encoded[name] = rng.choice(
        (
            content[:at],
            content[:at] + b"\xff" + content[at:],
            content[:at] + b"\0" + content[at:],
            b"\xef\xbb\xbf" + content,
            b"",
            b"[]",
            b"null",
            b"7",
            b"[" * 200_000,
            b'{"a":' * 100_000,
            b'{"model": ' + b"9" * 5000 + b"}",
            content + content,
        )
    )
    return encoded


_MAKERS: tuple[Callable[[random.Random, dict[str, Any], str], Files], ...] = (
    *(_wrong_type, _wrong_type, _wrong_type, _missing_key, _same_id, _pattern, _multiplying, _bytes, _bytes),
)


def bad_folders(count: int, seed: int) -> Iterator[tuple[str, Files]]:
    """What was done, and the files."""
    rng = random.Random(seed)
    for number in range(count):
        files = copy.deepcopy(rng.choice((right, legacy))())
        make, name = _MAKERS[number % len(_MAKERS)], rng.choice(list(files))
        yield f"{number} {make.__name__} {name}", make(rng, files, name)
