"""Chat templates that never end or make too much: an error in bounded time, and never another's answer."""

import threading
import time

import pytest

import jmi_models
from jmi.errors import TokenizerError
from jmi.tokenizers import chat, renderer

HI = [{"role": "user", "content": "Hi"}]
TURNS = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"


@pytest.fixture(scope="module")
def tokenizer():
    return jmi_models.load("atlas").tokenizer


TWICE = "{% set ns = namespace(a=['x']) %}{% for i in range(60) %}{% set ns.a = [ns.a, ns.a] %}{% endfor %}"
ENDLESS = {
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "branching": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(90) }}",
    "a power that is computed when it is compiled": "{{ 9 ** (9 ** 9) }}",
    "a list that holds itself twice": TWICE + "{{ ns.a }}",
    "the same as JSON": TWICE + "{{ ns.a | tojson }}",
}
LARGE = {
    "a long text": "{% for i in range(99999) %}{{ 'x' * 9999 }}{% endfor %}",
    "a text times a number": "{{ 'x' * 10 ** 11 }}",
    "a wide text": "{{ 'x' | center(99999999999) }}",
    "depth": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "brackets": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "nested statements": "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
}


@pytest.mark.parametrize("template", ENDLESS.values(), ids=ENDLESS)
def test_an_endless_template_is_stopped_and_the_next_is_rendered(tokenizer, monkeypatch, template):
    assert chat.render(tokenizer, HI, template=TURNS).text == "<user>Hi"
    start = time.monotonic()
    with monkeypatch.context() as patch:
        patch.setattr(renderer, "MOST_SECONDS", 0.5)
        with pytest.raises(TokenizerError, match=r"is not done after 0\.5 seconds and was stopped"):
            chat.render(tokenizer, HI, template=template)
    assert time.monotonic() - start < 10
    assert chat.render(tokenizer, HI, template=TURNS).text == "<user>Hi"


@pytest.mark.parametrize("template", LARGE.values(), ids=LARGE)
def test_a_template_that_makes_too_much_is_an_error_and_the_next_is_rendered(tokenizer, template):
    with pytest.raises(TokenizerError, match=r"the chat template (fails|ended the process|is not done)"):
        chat.render(tokenizer, HI, template=template)
    assert chat.render(tokenizer, HI, template=TURNS).text == "<user>Hi"


def test_an_interrupted_answer_is_never_the_next_one(tokenizer, monkeypatch):
    def interrupted(process, line):
        process.stdin.write(line + "\n")
        process.stdin.flush()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(renderer, "_exchanged", interrupted)
        with pytest.raises(KeyboardInterrupt):
            chat.render(tokenizer, HI, template="first {{ messages }}")
    assert chat.render(tokenizer, HI, template=TURNS).text == "<user>Hi"


def test_threads_get_their_own_answers(tokenizer):
    found = {}

    def one(i):
        found[i] = [chat.render(tokenizer, HI, template=f"{i} {{{{ messages | length }}}}").text] * 5

    threads = [threading.Thread(target=one, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {i: [f"{i} 1"] * 5 for i in range(8)}


def test_a_process_without_jinja_says_what_to_install(tokenizer, monkeypatch, tmp_path):
    (tmp_path / "sandbox.py").write_text("import a_package_that_is_not_there\n")
    renderer._stop()
    with monkeypatch.context() as patch:
        patch.setattr(renderer, "PROGRAM", tmp_path / "sandbox.py")
        with pytest.raises(TokenizerError, match=r"pip install 'jinja2>=3\.1\.6'"):
            chat.render(tokenizer, HI, template=TURNS)
    assert chat.render(tokenizer, HI, template=TURNS).text == "<user>Hi"
