"""Folders as found on the hub, in miniature: a tokenizer, and what the files beside it say of it."""

import json
import random
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

TEXTS = (
    *(
        "Hello world",
        "hello  world ",
        "",
        "né 日",
        " a1 22",
        "<|bos|>Hello",
        "world<|im_start|> hello<|im_end|>",
    ),
    *("Hello<|endoftext|>world", "<image>Hello <extra>", "hello <s> world</s>hello", "<|bos|> <|im_end|>"),
)
QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
NAMED = {"bos_token": "<|bos|>", "eos_token": "<|eos|>", "pad_token": "<|pad|>"}


def _merges(words: tuple[str, ...]) -> list[tuple[str, str]]:
    return [(word[:end], word[end]) for word in words for end in range(1, len(word))]


def _bpe(alphabet: list[str], words: tuple[str, ...], **options: Any) -> Tokenizer:
    merges = list(dict.fromkeys(_merges(words)))
    tokens = dict.fromkeys([*NAMED.values(), *alphabet, *(a + b for a, b in merges)])
    return Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges, **options))


def on_bytes(prefix: bool = False) -> Tokenizer:
    """As GPT-2's; NFC or digits apart, as others have them, changes nothing on `TEXTS` without them."""
    tokenizer = _bpe(sorted(pre_tokenizers.ByteLevel.alphabet()), ("Hello", "hello", "Ġhello", "Ġworld"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def neox() -> Tokenizer:
    tokenizer = on_bytes()
    tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def qwen() -> Tokenizer:
    tokenizer = neox()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return tokenizer


def cohere() -> Tokenizer:
    tokenizer = neox()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return tokenizer


def _on_marks() -> Tokenizer:
    alphabet = [
        "<unk>",
        "<s>",
        "</s>",
        "<bos>",
        "<eos>",
        "<pad>",
        "<mask>",
        *(f"<0x{i:02X}>" for i in range(256)),
    ]
    letters = sorted(set("▁Heloworldhan12"))
    return _bpe(
        [*alphabet, *letters],
        ("Hello", "hello", "▁hello", "▁world", "▁▁"),
        unk_token="<unk>",
        fuse_unk=True,
        byte_fallback=True,
    )


def llama(metaspace: bool = False) -> Tokenizer:
    tokenizer = _on_marks()
    if metaspace:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", "first", split=False)
    else:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    strip = decoders.Strip(content=" ", left=1)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip]
    )
    return tokenizer


def llama_metaspace() -> Tokenizer:
    return llama(metaspace=True)


def gemma() -> Tokenizer:
    tokenizer = _on_marks()
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return tokenizer


# A tokenizer, the classes that build just such a one, and model types that lead to these or overrule them.
BASES = (
    (on_bytes, ("GPT2Tokenizer", "GPT2TokenizerFast", None), ("gpt2", "opt", "starcoder2", "phi")),
    (on_bytes, ("CodeGenTokenizer",), ("phi", None)),
    (
        on_bytes,
        ("PreTrainedTokenizerFast", "LlamaTokenizerFast", "TokenizersBackend"),
        (None, "llama", "mistral"),
    ),
    (neox, ("GPTNeoXTokenizerFast", "GPTNeoXTokenizer", None), ("gpt_neox", "olmo", "olmoe")),
    (qwen, ("Qwen2Tokenizer", "Qwen2TokenizerFast", None, "PreTrainedTokenizerFast"), ("qwen2", "qwen3")),
    (cohere, ("CohereTokenizerFast", "CohereTokenizer", None), ("cohere", "cohere2")),
    (llama, ("LlamaTokenizer", "LlamaTokenizerFast"), ("llama", None)),
    (llama_metaspace, ("LlamaTokenizer", "LlamaTokenizerFast"), ("llama", None)),
    (llama, ("LlamaTokenizer", "PreTrainedTokenizerFast", None), ("mistral", "granite", "phi3", "stablelm")),
    (gemma, ("GemmaTokenizer", "GemmaTokenizerFast", None), ("gemma", "gemma2", "gemma3_text")),
)
TEMPLATE = processors.TemplateProcessing(
    single="<|bos|> $A <|eos|>", special_tokens=[("<|bos|>", 0), ("<|eos|>", 1)]
)


def token(text: str, **flags: bool) -> dict[str, Any]:
    return {
        "content": text,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        **flags,
    }


def decoder(start: int, *tokens: dict[str, Any]) -> dict[str, Any]:
    return {str(start + i): found for i, found in enumerate(tokens)}


CHAT = ("<|im_start|>", "<|im_end|>")
# Where special tokens stand: what goes into tokenizer_config.json, and other files.
PLACES: tuple[tuple[dict[str, Any], dict[str, Any]], ...] = (
    ({}, {}),
    ({"added_tokens_decoder": decoder(900, *(token(text, special=True) for text in CHAT))}, {}),
    ({"added_tokens_decoder": decoder(907, token(CHAT[1], special=False, lstrip=True, rstrip=True))}, {}),
    ({"additional_special_tokens": list(CHAT)}, {}),
    ({"extra_special_tokens": list(CHAT)}, {}),
    ({"extra_special_tokens": {"extra_token": "<extra>", "image_token": "<image>"}}, {}),
    ({"image_token": "<image>", "mask_token": "<extra>", "boi_token_index": 3}, {}),
    ({}, {"special_tokens_map.json": {"additional_special_tokens": list(CHAT)}}),
    (
        {},
        {"special_tokens_map.json": {"mask_token": token("<extra>", lstrip=True), "eos_token": "<|im_end|>"}},
    ),
    ({}, {"added_tokens.json": {"<|im_end|>": 901, "<|im_start|>": 900, "<extra>": 1000}}),
    (
        {"additional_special_tokens": [CHAT[0]]},
        {
            "added_tokens.json": {"<|im_end|>": 700, "<|im_start|>": 701},
            "special_tokens_map.json": {"bos_token": "<|im_start|>"},
        },
    ),
    ({"eos_token": {"__type": "AddedToken", **token("<|im_end|>", rstrip=True)}, "pad_token": None}, {}),
)


def folders(count: int, seed: int) -> list[tuple[str, Tokenizer, dict[str, dict[str, Any]]]]:
    """Label, tokenizer and other files of ``count`` folders: every place with every base at least once."""
    rng = random.Random(seed)
    grid = [(base, place) for base in BASES for place in PLACES]
    made = []
    for number in range(count):
        (build, classes, types), (config, files) = grid[number] if number < len(grid) else rng.choice(grid)
        flags = {
            "tokenizer_class": rng.choice(classes),
            "add_prefix_space": rng.choice((None, None, True, False)),
            "add_bos_token": rng.choice((None, True, False)),
            "add_eos_token": rng.choice((None, True, False)),
            "legacy": rng.choice((None, True, False)),
            "split_special_tokens": rng.choice((None, None, None, True)),
        }
        said = {key: value for key, value in flags.items() if value is not None}
        tokenizer = build()
        if rng.random() < 0.4:
            tokenizer.post_processor = TEMPLATE
        if rng.random() < 0.5:
            tokenizer.add_special_tokens(list(NAMED.values()))
        if rng.random() < 0.3:
            tokenizer.add_tokens([AddedToken("<extra>", normalized=False, rstrip=True)])
        listed = config.get("added_tokens_decoder")
        if listed is not None:  # where it stands, it lists what tokenizer.json has added, too
            config = config | {"added_tokens_decoder": _own(tokenizer) | listed}
        everything = {"tokenizer_config.json": NAMED | said | config, **files}
        if (model_type := rng.choice(types)) is not None:
            everything["config.json"] = {"model_type": model_type}
        made.append(
            (f"{number} {build.__name__} {said} {config} {files} {model_type}", tokenizer, everything)
        )
    return made


def _own(tokenizer: Tokenizer) -> dict[str, Any]:
    own = json.loads(tokenizer.to_str())["added_tokens"]
    return {str(found.pop("id")): found for found in own}


def write(folder: Path, tokenizer: Tokenizer | None, files: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    if tokenizer is not None:
        tokenizer.save(str(folder / "tokenizer.json"))
    for name, content in files.items():
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def as_vocabulary(tokenizer: Tokenizer) -> dict[str, Any]:
    """The same as ``vocab.json`` and ``merges.txt``."""
    model = json.loads(tokenizer.to_str())["model"]
    merges = "\n".join(" ".join(pair) for pair in model["merges"])
    return {"vocab.json": model["vocab"], "merges.txt": f"#version: 0.2\n{merges}\n"}
