"""The tokenizers of SmolLM2 and Gemma 3 from GGUF files: tokens, offsets and texts as in transformers."""

from typing import Any

import pytest

from tests.support.texts import texts

pytestmark = pytest.mark.real


def _mended(pair: Any) -> Any:
    """The tokenizer of transformers, with what it does not read from the file.

    In SmolLM2 every digit stands alone, in any script, before texts are cut as for GPT-2: so "½" is cut from
    letters, and a run of tabs before a digit is one piece. In Gemma runs of marks are tokens of a user, which
    are found before spaces become marks.
    """
    from tokenizers import AddedToken, pre_tokenizers

    backend = pair.tokenizer.backend_tokenizer
    if pair.name == "smollm2":
        digits = pre_tokenizers.Digits(individual_digits=True)
        bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.pre_tokenizer = pre_tokenizers.Sequence([digits, bytes_])
    else:
        backend.add_tokens([AddedToken("▁" * n, normalized=False) for n in range(2, 32)])
    return pair.tokenizer


def test_tokens_offsets_and_texts(pair):
    ours, theirs = pair.lm.tokenizer, _mended(pair)
    for text in [*texts(300, seed=4), "a  b▁▁c ▁▁▁ d", "tabs\t\t3", "two  4"]:
        found, want = ours.encode_with_offsets(text), theirs(text, return_offsets_mapping=True)
        assert found.ids.tolist() == want["input_ids"], text
        assert list(found.offsets) == want["offset_mapping"], text
        assert ours.decode(found.ids, special_tokens=False) == theirs.decode(
            want["input_ids"], skip_special_tokens=True, clean_up_tokenization_spaces=False
        ), text


def test_chats_are_written_as_the_template_of_the_file_says(pair):
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    chat.append({"role": "user", "content": "Bye"})
    if pair.tokenizer.chat_template is None:
        assert not pair.lm.tokenizer.chat_templates
    else:
        assert pair.lm.tokenizer.chat_templates["default"] == pair.tokenizer.chat_template
