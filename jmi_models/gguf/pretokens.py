"""How byte-level tokenizers cut a text into pieces before merging, by the name that GGUF files give it.

The steps are those of the models' own ``tokenizer.json``, where they are known: llama.cpp, which names them,
writes some of the patterns in a simpler way that differs on rare characters. Where they are not known, the
patterns are those of llama.cpp. No pattern comes from a file.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

Step = Mapping[str, Any]
"""A step as ``tokenizer.json`` writes it."""


@dataclasses.dataclass(frozen=True)
class Pretokens:
    """What is done with a text before merging.

    Attributes:
      steps: the pre-tokenizers, in order; the last ones spell bytes, unless ``marked``.
      normalizer: what is done with the text before that, if anything.
      whole: pieces that are tokens are taken whole, whatever the merges say.
      begins: a text begins with the BOS token where a file does not say whether it does.
      marked: tokens are spelt as they are with "▁" for a space, not by GPT-2's letters for bytes.
    """

    steps: tuple[Step, ...]
    normalizer: Step | None = None
    whole: bool = False
    begins: bool = False
    marked: bool = False


def _bytes(use_regex: bool) -> Step:
    """Spell a text by GPT-2's letters for bytes, cut by its pattern before, or not."""
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": use_regex}


def _digits(single: bool) -> Step:
    return {"type": "Digits", "individual_digits": single}


def _punctuation(behavior: str) -> Step:
    return {"type": "Punctuation", "behavior": behavior}


def _cut(pattern: str) -> Step:
    """Cut out whatever matches."""
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _cuts(*patterns: str) -> tuple[Step, ...]:
    """Cut by one pattern after the other, then spell bytes."""
    return *map(_cut, patterns), _bytes(False)


NFC: Step = {"type": "NFC"}
MARKS: Step = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}

_ONE, _THREE = r"\p{N}", r"\p{N}{1,3}"
_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_SIGNS_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
_RUNS = r"\s+(?!\S)|\s+"
_SPACES = r"\s*[\r\n]+|" + _RUNS


def _any(*patterns: str) -> str:
    """The first of these that matches."""
    return "|".join(patterns)


def _cased(ending: str, but: str = "") -> str:
    """Words that may begin in upper case and end in lower case; ``but`` narrows their letters."""
    before = r"[^\r\n\p{L}\p{N}]?"
    upper = rf"[\p{{Lu}}\p{{Lt}}\p{{Lm}}\p{{Lo}}\p{{M}}{but}]"
    lower = rf"[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}{but}]"
    return _any(f"{before}{upper}*{lower}+{ending}", f"{before}{upper}+{lower}*{ending}")


_LLAMA3 = _any(_ENDINGS, _LETTERS, _THREE, _SIGNS, _SPACES)
_QWEN2 = _any(_ENDINGS, _LETTERS, _ONE, _SIGNS, _SPACES)
_QWEN35 = _any(_ENDINGS, r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+", _ONE, r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*", _SPACES)
_GPT4O = _any(_cased(_ENDINGS + "?"), _THREE, _SIGNS_SLASH, _SPACES)
_TEKKEN = _any(_cased(""), _ONE, _SIGNS_SLASH, _SPACES)
_YOUTU = _any(_cased(_ENDINGS + "?"), _ONE, _SIGNS_SLASH, _SPACES)
_KIMI = _any(r"[\p{Han}]+", _cased(_ENDINGS + "?", r"&&[^\p{Han}]"), _THREE, _SIGNS, _SPACES)
_BAILING = _any(
    r"'(?i:[sdmt]|ll|ve|re)",
    r"[^\r\n\p{L}\p{N}]?+\p{L}+",
    _ONE,
    r" ?[^\s\p{L}\p{N}]++[\r\n]*",
    r"\s*[\r\n]",
    _RUNS,
)
_EXAONE_MOE = _any(
    _ENDINGS,
    r"[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+",
    _ONE,
    r" ?[^\s\p{L}\p{N}]+[\r\n/]?",
    r"\s*[\r\n]",
    _RUNS,
)
_JAIS2_RUNS = [rf"\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4, "1,2")]
_JAIS2 = _any(_ENDINGS, _LETTERS, _THREE, _SIGNS, r"\s*[\r\n]+", *_JAIS2_RUNS, r"\s{1}")
_BLOOM = r" ?[^(\s|[.,!?…。，、।۔،])]+"
_CJK = "[一-龥぀-ゟ゠-ヿ]+"
_DEEPSEEK_CJK = "[一-龥ࠀ-一가-퟿]+"
_DEEPSEEK3 = _any(
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+",
    r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+",
    r" ?[\p{P}\p{S}]+",
)
_CASED_LETTERS = (
    r"A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚ"
    r"Ḁ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄ"
    r"Ⰰ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃"
)

_GPT2 = Pretokens((_bytes(True),))
_DIGITS = Pretokens((_digits(True), _bytes(True)))
_NEOX = Pretokens((_bytes(True),), NFC)
_BY_LLAMA3 = Pretokens(_cuts(_LLAMA3), whole=True, begins=True)
_BY_GLM = Pretokens(_cuts(_LLAMA3), whole=True)
_BY_DBRX = Pretokens(_cuts(_LLAMA3))
_BY_QWEN2 = Pretokens(_cuts(_QWEN2))
_BY_GPT4O = Pretokens(_cuts(_GPT4O))
_BY_DEEPSEEK3 = Pretokens(_cuts(_THREE, _CJK, _any(_DEEPSEEK3 + r"[\r\n]*", _SPACES)))
_BY_BLOOM = Pretokens(_cuts(_BLOOM))
_BY_BAILING = Pretokens(_cuts(_BAILING))
_BY_COHERE = Pretokens(_cuts(r"\d{1,3}(?=(?:\d{3})*\b)", _GPT4O))
_MARKED = Pretokens((), MARKS, marked=True)

DEFAULT = Pretokens(
    _cuts(
        r"[\p{P}\$\+<=>\^~\|]+",
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
        r"\p{N}+",
        "[0-9][0-9][0-9]",
    )
)
"""What llama.cpp does where a file does not name any, which no model was trained with."""

PRETOKENS: Mapping[str, Pretokens] = {
    "default": DEFAULT,
    **dict.fromkeys(("gpt-2", "phi-2", "jais", "trillion", "granite-docling", "gigachat", "exaone4"), _GPT2),
    **dict.fromkeys(("a.x-4.0", "mellum", "roberta-bpe", "jina-v1-en", "jina-v2-code"), _GPT2),
    **dict.fromkeys(("jina-es", "jina-de", "jina-v2-es", "jina-v2-de"), _GPT2),
    **dict.fromkeys(("mpt", "olmo", "modern-bert"), _NEOX),
    **dict.fromkeys(
        ("smollm", "starcoder", "refact", "codeshell", "exaone", "minerva-7b", "mellum2"), _DIGITS
    ),
    "command-r": dataclasses.replace(_DIGITS, normalizer=NFC),
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1"), _BY_LLAMA3),
    **dict.fromkeys(("pixtral", "midm-2.0", "lfm2", "jina-v5-nano"), _BY_LLAMA3),
    **dict.fromkeys(("dbrx", "smaug-bpe", "chatglm-bpe"), _BY_DBRX),
    **dict.fromkeys(("glm4", "glm5"), _BY_GLM),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "f2llmv2"), dataclasses.replace(_BY_QWEN2, normalizer=NFC)),
    **dict.fromkeys(("kormo", "megrez", "stablelm2", "hunyuan", "solar-open", "grok-2"), _BY_QWEN2),
    "qwen35": Pretokens(_cuts(_QWEN35), NFC),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"), _BY_GPT4O),
    "granite-embed-multi-97m": dataclasses.replace(_BY_GPT4O, whole=True),
    "tekken": Pretokens(_cuts(_TEKKEN), whole=True, begins=True),
    "falcon": Pretokens((_punctuation("Contiguous"), _bytes(True), _digits(False), _cut("[0-9][0-9][0-9]"))),
    "deepseek-llm": Pretokens(
        (
            _cut(r"[\r\n]"),
            _cut(rf"\s?[{_CASED_LETTERS}]+"),
            _cut(r"\s?[!-/:-~！-／：-～‘-‟　-。]+"),
            _cut(r"\s+$"),
            _cut(_DEEPSEEK_CJK),
            _digits(True),
            _bytes(False),
        )
    ),
    "deepseek-coder": Pretokens(
        (
            *map(_cut, (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _DEEPSEEK_CJK)),
            _digits(True),
            _bytes(False),
        )
    ),
    **dict.fromkeys(("deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"), _BY_DEEPSEEK3),
    "spark2_5": Pretokens(
        _cuts(_THREE, _CJK, _any(_DEEPSEEK3, r"[\r\n]", _RUNS), _ONE),
    ),
    "youtu": Pretokens(
        _cuts(
            f"[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|{_CJK}",
            _YOUTU,
        ),
        whole=True,
    ),
    **dict.fromkeys(("bloom", "gpt3-finnish", "poro-chat"), _BY_BLOOM),
    "viking": Pretokens((_cut(_BLOOM), _digits(True), _bytes(False))),
    **dict.fromkeys(("bailingmoe", "bailingmoe2", "llada-moe"), _BY_BAILING),
    **dict.fromkeys(("tiny_aya", "cohere2moe"), _BY_COHERE),
    "chameleon": Pretokens(
        (_cut(r"([\t\n]|    |  )"), _digits(True), _punctuation("Isolated"), _bytes(True)), begins=True
    ),
    "kimi-k2": Pretokens(_cuts(_KIMI)),
    "superbpe": Pretokens(_cuts(r"\p{N}+", r"(?=(\d{3})+(?!\d))")),
    "seed-coder": Pretokens(
        _cuts(_any(_ENDINGS, _LETTERS, _ONE, r" ?[^\s\p{L}\p{N}\r\n]+", _SPACES)),
    ),
    "ufakzeka": Pretokens(_cuts(_any(_LETTERS, _ONE, _SIGNS, _SPACES))),
    "laguna": Pretokens(_cuts(r"[^\n]+|[\n]+", _QWEN2)),
    "minicpm5": Pretokens(_cuts(_THREE, _any(_ENDINGS, _LETTERS, r"\p{N}+", _SIGNS, _SPACES)), whole=True),
    "exaone-moe": Pretokens(_cuts(_EXAONE_MOE)),
    "jais-2": Pretokens(_cuts(_JAIS2)),
    **dict.fromkeys(("gemma4", "sarvam-moe", "granite-embed-multi-311m"), _MARKED),
}
"""By the value of ``tokenizer.ggml.pre``."""
