"""How commands end when something goes wrong: one sentence, the right exit code, and no traceback."""

import errno
import io
import os
import subprocess
import sys

import jax
import pytest

import jmi_models
from tests.cli.command_line import ENVIRONMENT, JMI, jmi, typed


def failing(monkeypatch, action, *arguments):
    """A command in which loading the model does ``action``."""
    monkeypatch.setattr(jmi_models, "load", lambda *_, **__: action())
    return jmi("knockout", *arguments)


def raising(error):
    def action():
        raise error

    return action


ENDS = {
    "memory": (MemoryError(), 1, "memory ran out"),
    "device memory": (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"), 1, "memory ran out"),
    "jax": (jax.errors.JaxRuntimeError("INTERNAL: told in\nmany lines"), 1, "INTERNAL: told in many lines"),
    "recursion": (RecursionError("maximum recursion depth"), 1, "unexpected RecursionError"),
    "mistake": (KeyError("x\x1b[31m"), 1, r"unexpected KeyError: 'x\x1b[31m'"),
    "system": (OSError(errno.EIO, "Input/output error", "a\x1b[2Jb"), 2, r"a\x1b[2Jb: Input/output error"),
    "permission": (PermissionError(errno.EACCES, "Permission denied", "weights"), 2, "weights: Permission"),
    "interrupted": (KeyboardInterrupt(), 130, "interrupted"),
    "no reader": (BrokenPipeError(), 141, ""),
}


@pytest.mark.parametrize(("error", "code", "words"), ENDS.values(), ids=ENDS)
def test_whatever_happens_ends_in_one_sentence(monkeypatch, tmp_path, error, code, words):
    done = failing(monkeypatch, raising(error), "--output", tmp_path / "x.json")
    assert (done.returncode, done.stdout) == (code, "")
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == (code != 141)
    assert list(tmp_path.iterdir()) == []


def test_a_debug_variable_adds_the_traceback(monkeypatch):
    monkeypatch.setenv("JMI_DEBUG", "1")
    done = failing(monkeypatch, raising(KeyError("x")))
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: unexpected KeyError")


def test_a_reader_that_leaves_is_no_error_and_files_are_written_all_the_same(tmp_path):
    file = tmp_path / "x.json"
    with subprocess.Popen(
        [*JMI, "knockout", "--output", str(file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    ) as process:
        process.stdout.close()
        errors = process.stderr.read()
    assert (process.returncode, errors) == (141, "")
    assert file.read_text().endswith("}\n")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_an_output_that_is_full_is_one_error():
    with open("/dev/full", "w") as full:
        done = subprocess.run([*JMI, "sites", "--names"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (2, "error: No space left on device\n")


def test_a_terminal_that_lacks_letters_shows_them_escaped():
    done = typed("knockout", "café 猫", "--top", 1, PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert r"'caf\xe9 \u732b'" in done.stdout


def test_help_alone_is_no_failure(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    for arguments in ((), ("--help",), ("patch", "--help")):
        done = jmi(*arguments)
        assert (done.returncode, done.stderr) == (0, "")
        assert "Usage: jmi" in done.stdout


@pytest.mark.parametrize("command", ["knockout", "patch", "attribute"])
def test_a_model_that_gives_nan_is_an_error(monkeypatch, command):
    lm = jmi_models.load("atlas")
    params = {**lm.params, "embed": jax.tree.map(lambda x: x * float("nan"), lm.params["embed"])}
    broken = lm.derived(lm.arch, params, "broken")
    monkeypatch.setattr(jmi_models, "load", lambda *_, **__: broken)
    done = jmi(command)
    assert (done.returncode, done.stdout) == (2, "")
    assert "atlas, broken gives NaN" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_tokens_and_names_are_shown_and_not_obeyed(monkeypatch, tmp_path):
    """A tokenizer may hold any string, and what a terminal obeys must not reach it."""
    lm = jmi_models.load("atlas")
    hostile = "[red] :cat: \x1b[2J\x9b31m\u202e [/] $x$"
    monkeypatch.setattr(type(lm), "token_string", lambda *_: hostile)
    named = lm.derived(lm.arch, lm.params, hostile)
    monkeypatch.setattr(jmi_models, "load", lambda *_, **__: named)
    pair = ("The capital of France is", "The capital of Germany is")
    for command in (
        ("knockout", pair[0] + hostile, "--plot", tmp_path / "a.png"),
        ("patch", *pair, "--site", "hook_resid_pre", "--plot", tmp_path / "b.png"),
        ("attribute", *pair),
        ("sites", f"no{hostile}where"),
        ("inspect", f"no{hostile}where"),
        ("download", f"no{hostile}where"),
    ):
        done = jmi(*command)
        shown = done.stdout + done.stderr
        assert r"[red] :cat: \x1b[2J\x9b31m\u202e [/] $x$" in shown.replace(r"\\", "\\"), shown
        assert all(c.isprintable() or c == "\n" for c in shown)
