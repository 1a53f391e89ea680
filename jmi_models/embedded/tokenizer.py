"""The tokenizer: byte-level BPE in which every answer word and number is a single token."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from jmi_models.embedded import corpus, facts
from jmi_models.embedded.mixture import piece

BOS, EOS = "<|bos|>", "<|endoftext|>"
BOS_ID, EOS_ID = 0, 1
VOCAB_SIZE = 4096
N_CTX = 256

# Numbers split in pairs of digits from the left, so the last two digits of a year are one token.
SPLIT = r"'(?:s|t|re|ve|m|ll|d)| ?\p{L}+| ?\p{N}{1,2}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def required_tokens() -> list[str]:
    """Strings that have to be one token each.

    These are content words after a space, numbers, and names that can begin a line.
    """
    words = {*corpus.WORDS, *(c.continent.split()[0] for c in facts.COUNTRIES), "America"}
    words |= {"positive", "negative", "he", "she", "his", "her", "is", "are", "was", "were"}
    pairs = [f"{number:02d}" for number in range(100)]
    numbers = pairs + [f" {n}" for n in pairs] + [f" {n}" for n in range(10)]
    first = [*facts.NAMES, *(name for c in facts.COUNTRIES for name in (c.name, c.capital))]
    return sorted(f" {word}" for word in words) + first + numbers


def training_text(seed: int, pieces: int = 40_000, repeats: int = 200) -> Iterator[str]:
    """Corpus text, and every required token often enough to become one."""
    rng = np.random.default_rng([seed, 1])
    for _ in range(pieces):
        yield piece(rng).replace(corpus.MARK, "").replace(corpus.QUIET, "")
    for token in required_tokens():
        yield from [token] * repeats


def build_tokenizer(seed: int = 0) -> Tokenizer:
    """Train the tokenizer on the corpus; raises ValueError if a required token is missing."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[BOS, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(training_text(seed), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A",
        pair=f"{BOS} $A $B:1",
        special_tokens=[(BOS, BOS_ID)],
    )
    _check(tokenizer)
    return tokenizer


def _check(tokenizer: Tokenizer) -> None:
    """Raise ValueError unless the special tokens and all required tokens are as promised."""
    if (tokenizer.token_to_id(BOS), tokenizer.token_to_id(EOS)) != (BOS_ID, EOS_ID):
        raise ValueError("the special tokens do not have the first two ids")
    encoded = tokenizer.encode_batch(required_tokens(), add_special_tokens=False)
    split = [e.tokens for e in encoded if len(e.ids) != 1]
    if split:
        raise ValueError(f"{len(split)} required strings are not single tokens: {split[:10]}")


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer.json and the tokenizer_config.json Hugging Face libraries look for."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "add_bos_token": True,
        "clean_up_tokenization_spaces": False,
        "model_max_length": N_CTX,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
