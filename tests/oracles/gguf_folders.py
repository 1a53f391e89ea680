"""Folders of small models of many kinds, with tokenizers that are trained here, for `gguf_vocabularies`.

Byte-level ones have the steps of published models; SentencePiece's need the package ``sentencepiece``.
"""

import json
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from tests.support.texts import WRITTEN

TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
NAMED = {"bos_token": "<|begin|>", "eos_token": "<|end|>", "pad_token": "<|pad|>"}
_CORPUS = [
    *WRITTEN,
    *("the cat and the dog sat in the garden with the children " * 3, "int main() { return 0; }"),
]
_LAYERS = {"num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2, "max_position_embeddings": 64}

NAMES = (
    *("gpt-2", "llama-bpe", "tekken", "gpt-4o", "qwen2", "qwen35", "smollm", "command-r", "olmo", "falcon"),
    *("deepseek-v3", "bloom", "llama", "gemma2", "phi3", "rwkv"),
)


def _split(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Split(Regex(pattern), "isolated")


def _on_bytes(use_regex: bool = False) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


def _families() -> dict[str, tuple[str, str, list[Any], bool, bool]]:
    """Name of pre-tokenizer -> classes of model and tokenizer, steps, NFC, whether pieces are taken whole."""
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS as splits

    digits, generic = pre_tokenizers.Digits(individual_digits=True), "TokenizersBackend"
    return {
        "gpt-2": ("GPT2LMHeadModel", "GPT2Tokenizer", [_on_bytes(True)], False, False),
        "llama-bpe": ("LlamaForCausalLM", generic, [_split(splits["llama-bpe"]), _on_bytes()], False, True),
        "tekken": ("LlamaForCausalLM", generic, [_split(splits["tekken"]), _on_bytes()], False, True),
        "gpt-4o": ("LlamaForCausalLM", generic, [_split(splits["gpt-4o"]), _on_bytes()], False, False),
        "qwen2": ("Qwen2ForCausalLM", "Qwen2Tokenizer", [_split(splits["qwen2"]), _on_bytes()], True, False),
        "qwen35": ("LlamaForCausalLM", generic, [_split(splits["qwen35"]), _on_bytes()], True, False),
        "smollm": ("LlamaForCausalLM", generic, [digits, _on_bytes(True)], False, False),
        "command-r": ("LlamaForCausalLM", generic, [digits, _on_bytes(True)], True, False),
        "olmo": ("OlmoForCausalLM", "GPTNeoXTokenizer", [_on_bytes(True)], True, False),
        "falcon": (
            "LlamaForCausalLM",
            generic,
            [
                pre_tokenizers.Punctuation("contiguous"),
                _on_bytes(True),
                pre_tokenizers.Digits(individual_digits=False),
                _split("[0-9][0-9][0-9]"),
            ],
            False,
            False,
        ),
        "deepseek-v3": (
            "LlamaForCausalLM",
            generic,
            [
                _split(r"\p{N}{1,3}"),
                _split("[一-龥\u3040-\u309f\u30a0-\u30ff]+"),
                _split(
                    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
                    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
                ),
                _on_bytes(),
            ],
            False,
            False,
        ),
        "bloom": (
            "LlamaForCausalLM",
            generic,
            [_split(r" ?[^(\s|[.,!?…。，、।۔،])]+"), _on_bytes()],
            False,
            False,
        ),
    }


def _write(folder: Path, files: dict[str, Any]) -> None:
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))


def _byte_level(folder: Path, pre: str) -> None:
    """A model folder with a tokenizer on bytes."""
    model, tokenizer_class, steps, nfc, whole = _families()[pre]
    tokenizer = Tokenizer(models.BPE(ignore_merges=whole))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=480, initial_alphabet=alphabet, special_tokens=list(NAMED.values()), show_progress=False
    )
    # Trained without any cut: merges go across all of them, so that a cut that is missing shows.
    tokenizer.pre_tokenizer = _on_bytes()
    tokenizer.train_from_iterator(_CORPUS, trainer)
    tokenizer.normalizer = normalizers.NFC() if nfc else None
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps) if len(steps) > 1 else steps[0]
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer.add_tokens([AddedToken("<think>", normalized=False), AddedToken("   ", normalized=False)])
    single = "<|begin|> $A" if whole else "$A"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single, pair=f"{single} $B", special_tokens=[("<|begin|>", tokenizer.token_to_id("<|begin|>"))]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": tokenizer_class, "chat_template": TEMPLATE} | NAMED
    if pre == "smollm":
        config["chat_template"] = [
            {"name": name, "template": name + TEMPLATE} for name in ("default", "tool_use")
        ]
    config["unk_token"] = "<|end|>"
    kind = {"GPT2LMHeadModel": "gpt2", "Qwen2ForCausalLM": "qwen2", "OlmoForCausalLM": "olmo"}.get(
        model, "llama"
    )
    size = tokenizer.get_vocab_size() + 3  # more rows than tokens
    _write(
        folder,
        {
            "tokenizer_config.json": config,
            "config.json": {"architectures": [model], "model_type": kind, "vocab_size": size, **_LAYERS},
        },
    )


def _sentencepiece(folder: Path, name: str) -> None:
    """A model folder with a tokenizer of SentencePiece, and the ``tokenizer.json`` that belongs to it."""
    import sentencepiece

    gemma = name == "gemma2"
    own = {"pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3, "pad_piece": "<pad>", "eos_piece": "<eos>"}
    own |= {"bos_piece": "<bos>", "user_defined_symbols": ["<mask>", "\n", "\n\n", "▁▁", "▁▁▁", "<think>"]}
    (folder / "corpus.txt").write_text(
        "\n".join(text.replace("\n", " ") for text in _CORPUS if text.isascii())
    )
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "corpus.txt"),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=480,
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=not gemma,
        split_digits=True,
        **(own if gemma else {}),
    )
    special = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    if not gemma:
        special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    kinds = {
        "gemma2": ("Gemma2ForCausalLM", "GemmaTokenizer"),
        "phi3": ("Phi3ForCausalLM", "TokenizersBackend"),
    }
    model, tokenizer_class = kinds.get(name, ("LlamaForCausalLM", "LlamaTokenizer"))
    size = 480 + 4 * (name == "phi3")
    config: dict[str, Any] = {"tokenizer_class": tokenizer_class, "chat_template": TEMPLATE, **special}
    if gemma:
        texts = ("<pad>", "<eos>", "<bos>", "<unk>", *own["user_defined_symbols"])
        config["added_tokens_decoder"] = {
            index: _said(text, special=index < 5) for index, text in enumerate(texts)
        }
    if name == "phi3":
        config["added_tokens_decoder"] = {
            0: _said("<unk>", True),
            1: _said("<s>", True),
            2: _said("</s>", False, rstrip=True),
            480: _said("<|endoftext|>", True),
            481: _said("<|user|>", True, rstrip=True),
            482: _said("<|end|>", True, rstrip=True),
        }
    _save_pieces(folder, name, config)
    _write(
        folder,
        {
            "tokenizer_config.json": config,
            "config.json": {"architectures": [model], "model_type": name, "vocab_size": size, **_LAYERS},
        },
    )


def _said(text: str, special: bool, rstrip: bool = False) -> dict[str, Any]:
    flags = {"lstrip": False, "rstrip": rstrip, "normalized": False, "single_word": False, "special": special}
    return {"content": text, **flags}


def _save_pieces(folder: Path, name: str, config: dict[str, Any]) -> None:
    """``tokenizer.json`` as transformers makes it of a model of SentencePiece."""
    from sentencepiece import SentencePieceProcessor
    from transformers.tokenization_utils_base import generate_merges

    pieces = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    scores = {pieces.id_to_piece(i): pieces.get_score(i) for i in range(pieces.get_piece_size())}
    vocabulary = {piece: index for index, piece in enumerate(scores)}
    merges = generate_merges(vocabulary, None if name == "gemma2" else scores)
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    marks = normalizers.Replace(" ", "▁")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if name == "gemma2":
        tokenizer.normalizer = marks
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    else:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), marks])
        steps.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(steps)
    said = config.get("added_tokens_decoder", {})
    added = [AddedToken(**said[index]) for index in sorted(said)]
    tokenizer.add_tokens(
        added or [AddedToken(text, special=True, normalized=False) for text in ("<unk>", "<s>", "</s>")]
    )
    begin = config["bos_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", pair=f"{begin} $A $B", special_tokens=[(begin, tokenizer.token_to_id(begin))]
    )
    tokenizer.save(str(folder / "tokenizer.json"))


def _rwkv(folder: Path) -> None:
    """A model folder with a World vocabulary."""
    words = ["'", '"', "\\", "the", " the", "\n\n", "é", "日本", "\t", "it's", "'\"\\"]
    tokens = [bytes([i]) for i in range(256)] + [word.encode() for word in words if len(word.encode()) > 1]
    lines = []
    for index, token in enumerate(tokens, 1):
        try:
            literal = repr(token.decode())
        except UnicodeDecodeError:
            literal = repr(token)
        lines.append(f"{index} {literal} {len(token)}\n")
    (folder / "rwkv_vocab_v20230424.txt").write_text("".join(lines))
    _write(
        folder,
        {
            "config.json": {
                **{"architectures": ["Rwkv6ForCausalLM"], "model_type": "rwkv6", "vocab_size": 280},
                **{"num_hidden_layers": 1, "hidden_size": 8},
            }
        },
    )


def made(folder: Path, name: str) -> None:
    """Write the folder of the model ``name``."""
    if name == "rwkv":
        _rwkv(folder)
    elif name in ("llama", "gemma2", "phi3"):
        _sentencepiece(folder, name)
    else:
        _byte_level(folder, name)
