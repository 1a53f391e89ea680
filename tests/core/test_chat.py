"""Chat templates rendered: transformers' results, recorded and live, and what could go wrong unseen."""

import dataclasses
import json
import os
from pathlib import Path

import pytest

import jmi
import jmi_models
from jmi.errors import ArgumentError, TokenizerError
from jmi.tokenizers import Tokenizer, chat

SHARED = Path(os.environ.get("JMI_SHARED") or Path(__file__).parents[3] / "shared")
FILE = SHARED / "oracles" / "interp" / "chat_templates.json"
RECORDED = json.loads(FILE.read_text(encoding="utf-8")) if FILE.is_file() else None
recorded = pytest.mark.skipif(RECORDED is None, reason=f"recorded chats are not at {FILE}; set JMI_SHARED")

HI = [{"role": "user", "content": "Hi"}]
TURNS = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"


@pytest.fixture(scope="module")
def lm():
    return jmi_models.load("atlas")


@pytest.fixture(scope="module")
def tokenizer(lm):
    return lm.tokenizer


def with_templates(tokenizer: Tokenizer, templates: dict[str, str]) -> Tokenizer:
    return Tokenizer(tokenizer._backend, tokenizer.special, templates)


def cases(key: str, template: str | None = None) -> list[dict]:
    found = [case for case in RECORDED["cases"] if key in case and template in (None, case["template"])]
    assert found
    return found


def again(tokenizer: Tokenizer, case: dict) -> chat.Chat:
    """What transformers was asked for, without what it did with the text."""
    options = {"add_generation_prompt": False} | case["options"]
    options = {k: v for k, v in options.items() if k not in ("return_assistant_tokens_mask", "tokenize")}
    if "tools" in options:
        options["tools"] = RECORDED["tools"]
    messages = RECORDED["conversations"][case["conversation"]]
    return chat.render(tokenizer, messages, template=RECORDED["templates"][case["template"]], **options)


@recorded
@pytest.mark.parametrize("template", RECORDED["templates"] if RECORDED else [])
def test_texts_are_those_of_transformers(tokenizer, template):
    for case in cases("text", template):
        assert again(tokenizer, case).text == case["text"], case


@recorded
def test_errors_are_those_of_transformers_in_one_of_two_kinds(tokenizer):
    for case in cases("error"):
        with pytest.raises((ArgumentError, TokenizerError)) as found:
            again(tokenizer, case)
        kind, said = case["error"].rpartition(".")[2], str(found.value)
        if kind == "ValueError":
            assert case["conversation"] == "nothing"
            assert said.startswith("messages is empty")
            assert found.type is ArgumentError
        elif kind == "TemplateError":
            assert said == f"the chat template refuses these messages: {case['message']}"
            assert found.type is ArgumentError
        else:
            assert said.startswith(f"the chat template fails ({kind}: {case['message']}); ")
            assert found.type is TokenizerError


@recorded
def test_tokens_and_masks_are_those_of_transformers(tokenizer):
    masked = 0
    for case in cases("input_ids"):
        found = again(tokenizer, case)
        encoding = tokenizer.encode_with_offsets(found.text, special_tokens=False)
        assert encoding.ids.tolist() == case["input_ids"]
        if "assistant_masks" in case:
            assert found.mask(encoding).tolist() == [bool(x) for x in case["assistant_masks"]]
            masked += sum(case["assistant_masks"])
    assert masked > 20


@recorded
@pytest.mark.parametrize("case", RECORDED["hostile"] if RECORDED else [], ids=lambda case: case["name"])
def test_the_sandbox_refuses_what_it_refuses_for_transformers(tokenizer, case):
    messages = RECORDED["conversations"]["one"]
    if "text" in case:
        assert chat.render(tokenizer, messages, template=case["template"]).text == case["text"]
        return
    with pytest.raises((ArgumentError, TokenizerError)) as found:
        chat.render(tokenizer, messages, template=case["template"])
    kind = case["error"].rpartition(".")[2]
    assert case["message"] in str(found.value)
    assert (found.type is ArgumentError) == (kind == "TemplateError")
    assert found.type is ArgumentError or f"({kind}: " in str(found.value)


def test_a_chat_of_a_model_has_one_bos_and_runs(lm):
    template = "{{ bos_token }}" + TURNS + "{% if add_generation_prompt %}<answer>{% endif %}"
    text = lm.chat(HI, template=template)
    assert text == "<|bos|><user>Hi<answer>"
    tokens = lm.encode(text, special_tokens=False)
    assert (tokens == lm.tokenizer.special["bos_token"]).sum() == 1
    assert lm.run(tokens, logits_at=-1).logits.shape == (1, 4096)
    assert lm.chat(HI, template=template, add_generation_prompt=False) == "<|bos|><user>Hi"
    assert lm.chat(HI, template=template, continue_final_message=True) == "<|bos|><user>Hi"
    assert lm.chat(HI, template=template, bos_token="") == "<user>Hi<answer>"


def test_a_model_without_a_template_or_a_tokenizer_says_so(lm):
    with pytest.raises(
        TokenizerError, match=r"no chat template of the name 'default', it has none.*template="
    ):
        lm.chat(HI)
    with pytest.raises(TokenizerError, match="ships no tokenizer"):
        dataclasses.replace(lm, tokenizer=None).chat(HI, template=TURNS)


def test_templates_go_by_name(tokenizer):
    many = with_templates(
        tokenizer, {"default": "d{{ messages }}", "tool_use": "t{{ tools }}", "r": "r{{ bos_token }}"}
    )
    tools = [{"name": "clock"}]
    assert chat.render(many, HI).text[0] == "d"
    assert chat.render(many, HI, tools=tools).text == "t[{'name': 'clock'}]"
    assert chat.render(many, HI, template="r").text == "r<|bos|>"
    # A name with a slip would be a text without anything to fill in.
    with pytest.raises(ArgumentError, match=r"template='tool_us': .*it has \['default', 'r', 'tool_use'\]"):
        chat.render(many, HI, template="tool_us")
    with pytest.raises(TokenizerError, match=r"'default', it has \['rag'\]; give one by name"):
        chat.render(with_templates(tokenizer, {"rag": TURNS}), HI)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"tools": [{"name": "clock"}]}, "tools"),
        ({"documents": [{"text": "a"}]}, "documents"),
        ({"enable_thinkin": False}, "enable_thinkin"),
    ],
)
def test_what_a_template_does_not_read_is_refused(tokenizer, options, name):
    template = TURNS + "{% if enable_thinking is not defined %}{% set enable_thinking = true %}{% endif %}"
    with pytest.raises(
        ArgumentError, match=rf"does not read {name}; .*\(it reads enable_thinking, messages\)"
    ):
        chat.render(tokenizer, HI, template=template, **options)
    assert chat.render(tokenizer, HI, template=template, enable_thinking=False).text == "<user>Hi"


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ("Hi", "messages='Hi': give a list of dicts"),
        (HI[0], "messages=a dict: give a list"),
        ([HI], r"messages\[0\] is a list; give a dict"),
        ([], "messages is empty"),
        ([{"rol": "user", "content": "Hi"}], r"messages\[0\] has no role"),
        ([{"role": "user", "content": object()}], r"messages\[0\]\['content'\] is a object; give texts"),
        ([{"role": "user", "content": {1: 2}}], r"is a dict; give texts, numbers, lists, and dicts by names"),
        ([{"role": "user", "content": 10**5000}], "more than 64 bits"),
    ],
)
def test_messages_that_are_none_are_refused(tokenizer, messages, said):
    with pytest.raises(ArgumentError, match=said):
        chat.render(tokenizer, messages, template=TURNS)


def test_messages_that_hold_themselves_are_refused(tokenizer):
    endless = []
    endless.append(endless)
    with pytest.raises(ArgumentError, match="nested more than 60 deep"):
        chat.render(tokenizer, [{"role": "user", "content": endless}], template=TURNS)


@pytest.mark.parametrize(
    ("last", "template", "options", "said"),
    [
        ({"content": "a"}, "{{ messages[0].role }}", {}, "leaves out the last message"),
        ({"content": [{"type": "image"}]}, TURNS, {}, "no text to continue"),
        ({}, TURNS, {}, "no text to continue"),
        ({"content": "a"}, TURNS, {"add_generation_prompt": True}, "exclude each other"),
    ],
)
def test_a_message_that_cannot_be_continued_is_refused(tokenizer, last, template, options, said):
    messages = [*HI, {"role": "assistant", **last}]
    with pytest.raises(ArgumentError, match=said):
        chat.render(tokenizer, messages, template=template, continue_final_message=True, **options)


def test_messages_are_left_as_they_are(tokenizer):
    messages = [{"role": "assistant", "content": [{"type": "text", "text": "a "}], "name": None}]
    kept = json.loads(json.dumps(messages))
    template = "<{% for p in messages[0].content %}{{ p.text }}{% endfor %}>"
    found = chat.render(tokenizer, messages, template=template, continue_final_message=True)
    assert found.text == "<a "
    assert messages == kept


BLOCK = "{% generation %}{{ m.content }}{% endgeneration %}"
OWN = "{% for m in messages %}{% if m.role == 'assistant' %}" + BLOCK + "{% else %}u{% endif %}{% endfor %}"


def test_spans_of_the_model_end_where_a_message_is_continued(tokenizer):
    messages = [*HI, {"role": "assistant", "content": "ünï 東京"}]
    found = chat.render(tokenizer, messages, template=OWN, continue_final_message=True)
    assert (found.text, found.generated) == ("uünï 東京", ((1, 7),))
    assert chat.render(tokenizer, HI, template=OWN).generated == ()
    assert not chat.render(tokenizer, HI, template=OWN).mask(tokenizer.encode_with_offsets("u")).any()


@pytest.mark.parametrize(
    "template",
    [
        TURNS,
        "{% macro f(m) %}Hi " + BLOCK + "{% endmacro %}{{ f(messages[0]) }}",
        "{% set m = messages[0] %}{% set x %}Hi " + BLOCK + "{% endset %}{{ x }}",
        "{% set m = messages[0] %}{% filter trim %}Hi " + BLOCK + "{% endfilter %}",
        "{% macro f() %}{{ caller() }}{% endmacro %}{% set m = messages[0] %}{% call f() %}Hi "
        + BLOCK
        + "{% endcall %}",
        "{% for m in messages recursive %}Hi " + BLOCK + "{% endfor %}",
    ],
)
def test_spans_whose_place_is_not_known_are_none(tokenizer, template):
    # The text says Hi twice, so that a wrong place would look right.
    found = chat.render(tokenizer, HI, template=template)
    assert "Hi" in found.text
    assert found.generated is None
    with pytest.raises(ArgumentError, match="does not mark what is the model's own"):
        found.mask(tokenizer.encode_with_offsets(found.text))


TOOL = {"type": "function", "function": {"name": "ü<b>", "parameters": {"n": [1, 2.5, None, True]}}}
LIVE = {
    "reasoning": (
        "{{ messages[-1].reasoning_content }}|{{ messages[-1].thinking }}|{{ messages[-1] | tojson }}",
        [*HI, {"role": "assistant", "content": None, "reasoning": "hm", "tool_calls": None}],
        {},
    ),
    "documents": ("{{ documents | tojson(indent=1) }}{{ eos_token }}", HI, {"documents": [{"text": "é"}]}),
    "JSON": (
        "{{ tools | tojson(separators=(',', ':'), sort_keys=true) }}{{ tools | tojson(true) }}",
        HI,
        {"tools": [TOOL]},
    ),
    "parts continued": (
        "{% for p in messages[-1].content %}{{ p.text | trim }}{% endfor %}</s>",
        [{"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b  "}]}],
        {"continue_final_message": True},
    ),
    "dict and namespace": (
        "{% set d = dict(a=1) %}{% set n = namespace(d, b=2) %}{% set n.c = 3 %}{{ d }}{{ n.a + n.b + n.c }}"
        "{{ dict.fromkeys(['x'], 1) }}{{ dict([['k', 'v']]) }}{{ namespace(self=4)['self'] }}",
        HI,
        {},
    ),
    "the date": ("{{ strftime_now('%d %B %Y') }}", HI, {}),
    "unknown tokens": ("[{{ pad_token }}{{ bos_token }}]{{ unk_token is defined }}", HI, {}),
    "other variables": ("{{ deep.a[0] }}{{ bos_token }}", HI, {"deep": {"a": (1,)}, "bos_token": "B"}),
    "white space": ("  {% if true %}\n  a\n  {%- endif %}\n\n{# c #}\n {{ 1 }} \n\n", HI, {}),
}


@pytest.mark.oracle
@pytest.mark.parametrize("case", LIVE)
def test_what_is_not_recorded_is_as_in_transformers(tokenizer, tmp_path, case):
    transformers = pytest.importorskip("transformers")
    template, messages, options = LIVE[case]
    tokenizer.save(tmp_path)
    peer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    want = peer.apply_chat_template(messages, chat_template=template, tokenize=False, **options)
    options = {"add_generation_prompt": False, **options}
    assert chat.render(tokenizer, messages, template=template, **options).text == want


def test_a_template_of_a_folder_is_used_and_saved(tokenizer, tmp_path):
    with_templates(tokenizer, {"default": TURNS}).save(tmp_path)
    assert jmi.Tokenizer.from_folder(tmp_path).special_texts == tokenizer.special_texts
    assert chat.render(jmi.Tokenizer.from_folder(tmp_path), HI).text == "<user>Hi"
