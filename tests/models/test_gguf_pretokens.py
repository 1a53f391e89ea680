"""How texts are cut before merging, by the name of a pre-tokenizer; worked out from its steps."""

import json

import pytest
import tokenizers

from jmi_models.gguf.pretokens import PRETOKENS

CUTS = {
    "falcon": ("a . 12345 x==1", "a| |.| |123|45| x|==|1"),
    "deepseek-v3": ("a中文b 12345 don't (x)\n", "a|中文|b| |123|45| don|'t| (|x|)\n"),
    "deepseek-llm": ("a中文b. 12\n", "a|中文|b|.| |1|2|\n"),
    "deepseek-coder": ("a中文b. 12\n", "a|中文|b|.| |1|2|\n"),
    "bloom": ("ab, cd. (e) 12", "ab|,| cd|. (|e|)| 12"),
    "viking": ("ab, 12", "ab|,| |1|2"),
    "tiny_aya": ("1234567 aB's", "1|234|567| a|B's"),
    "superbpe": ("by the way 12345 ok", "by the way |12|345| ok"),
    "kimi-k2": ("ab中文cd 1234's", "ab|中文|cd| |123|4|'s"),
    "chameleon": ("a,b  12\n", "a|,|b|  |1|2|\n"),
    "seed-coder": ("a 12!\n\n", "a| |1|2|!|\n\n"),
    "jais-2": ("a       b 1234", "a|    |  | b| |123|4"),
    "minicpm5": ("a 12345's", "a| |123|45|'s"),
    "exaone-moe": ("ab cd!/ 12", "ab cd|!/| |1|2"),
    "default": ("a=12345, b", "a|=|123|45|,| b"),
    "gpt-2": ("we'll 123!? \n x", "we|'ll| 123|!?| \n| x"),
    "llama-bpe": ("WE'LL 12345!?\n x", "WE|'LL| |123|45|!?\n| x"),
    "qwen2": ("WE'LL 123!?\n x", "WE|'LL| |1|2|3|!?\n| x"),
    "qwen35": ("e\u0301x 12", "éx| |1|2"),
    "gpt-4o": ("fooBar's 1234 a/b//\n", "foo|Bar's| |123|4| a|/b|//\n"),
    "tekken": ("fooBar's 12//\n", "foo|Bar|'s| |1|2|//\n"),
    "smollm": ("a 12½", "a| |1|2|½"),
    "bailingmoe": ("a's 12\n\n b", "a|'s| |1|2|\n\n| b"),
    "youtu": ("ab中文、한국 12 Bc's", "ab|中文|、|한국| |1|2| Bc's"),
    "spark2_5": ("a 123!\n中b", "a| |1|2|3|!|\n|中|b"),
    "laguna": ("a\n\nb 12", "a|\n\n|b| |1|2"),
    "ufakzeka": ("a's 12", "a|'s| |1|2"),
}


def cuts(name: str, text: str) -> list[str]:
    steps = {"type": "Sequence", "pretokenizers": PRETOKENS[name].steps}
    model = {"type": "BPE", "vocab": {}, "merges": []}
    file = {"version": "1.0", "added_tokens": [], "pre_tokenizer": steps, "model": model}
    found = tokenizers.Tokenizer.from_str(json.dumps(file)).pre_tokenizer.pre_tokenize_str(text)
    return [text[start:end] for _, (start, end) in found]


@pytest.mark.parametrize("name", CUTS)
def test_texts_are_cut_as_the_models_cut_them(name):
    text, pieces = CUTS[name]
    assert cuts(name, text) == pieces.split("|")


def test_where_digits_are_no_ascii():
    # Falcon looks for digits among the letters that stand for bytes: 0xB2 is one, 0xC2 is not.
    assert cuts("falcon", "x²") == ["x", "²", "²"]
    assert cuts("smollm", "x²³") == ["x", "²", "³"]
    assert cuts("gpt-2", "x²³") == ["x", "²³"]


@pytest.mark.oracle
def test_patterns_are_those_that_transformers_has():
    mapping = pytest.importorskip("transformers.integrations.gguf.gguf_tokenizer_mapping")
    for name, pattern in mapping.GGUF_PRE_TOKENIZER_SPLITS.items():
        assert PRETOKENS[name].steps[0]["pattern"] == {"Regex": pattern}, name
