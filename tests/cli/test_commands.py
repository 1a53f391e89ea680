"""What holds for every command: where it is found, how it is typed, what it writes, what its help costs."""

import dataclasses
import inspect
import json
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import jax
import numpy as np
import pytest
import typer

import jmi
import jmi_models
import jmi_sparse
from jmi import artefacts
from jmi.cli import commands, options
from jmi_models.commands.model import ModelOptions
from tests.cli.command_line import jmi as run
from tests.cli.command_line import refused
from tests.test_imports import loaded

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OWN = PROJECT["entry-points"][commands.GROUP]
OF_MODELS = {"inspect", "sites", "download"}


def signature(name):
    return inspect.signature(commands.as_typed(commands.find_commands()[name].load()))


def test_the_commands_are_those_of_the_project_wherever_it_runs_from():
    found = commands.find_commands()
    assert {name: found[name].value for name in OWN} == OWN
    assert set(OWN) > OF_MODELS


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A dictionary of random numbers for atlas: none ships with it."""
    rows = np.random.default_rng(0).normal(size=(256, 128)).astype(np.float32)
    zeros, site = np.zeros(128, np.float32), "blocks.4.hook_resid_post"
    bias, top = np.zeros(256, np.float32), jmi_sparse.TopK(4)
    sae = jmi_sparse.Dictionary(rows.T.copy(), rows, zeros, top, bias, hook_in=site, hook_out=site)
    place = tmp_path_factory.mktemp("dictionary")
    jmi_sparse.save(sae, place)
    return place


@pytest.mark.parametrize("name", OWN)
def test_a_command_needs_no_arguments_and_writes_a_record_that_says_its_schema(name, tmp_path, folder):
    named = [folder] if name == "sae" else ["--dictionaries", folder] * OWN[name].startswith("jmi_sparse")
    named += ["--against", folder] * (name == "compare")
    done = run(name, *named, "--output", tmp_path / "x.json")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout
    record = json.loads((tmp_path / "x.json").read_text())
    assert record["schema_version"] == artefacts.SCHEMA_VERSION
    assert record["command"] == name
    assert record["packages"]["jmi"] == jmi.__version__
    assert record["packages"]["jax"] == jax.__version__


@pytest.mark.parametrize("name", OWN)
def test_options_are_the_same_everywhere(name):
    parameters = signature(name).parameters
    arguments, typed = [], {}
    for parameter in parameters.values():
        (kind,) = parameter.annotation.__metadata__
        if isinstance(kind, typer.models.ArgumentInfo):
            arguments.append(parameter.name)
        else:
            typed[parameter.name] = (parameter.annotation, parameter.default)
    assert all(parameter.default is not inspect.Parameter.empty for parameter in parameters.values())
    if name in OF_MODELS:
        assert arguments == ["model"]
        assert parameters["model"].default == "atlas"
        shared = [("output", options.Output)]
    else:
        assert "model" not in arguments
        bundles = (ModelOptions, options.Files)
        hints = [inspect.get_annotations(bundle) for bundle in bundles]
        shared = [item for bundle in hints for item in bundle.items()]
    assert all(typed[name][0] == annotation for name, annotation in shared)
    given = inspect.signature(commands.find_commands()[name].load()).parameters
    assert len(given) <= 12


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], *([name, "--help"] for name in OWN)], ids=" ".join
)
def test_help_imports_neither_jax_nor_numpy(arguments):
    line = f"import contextlib, io, sys; sys.argv = ['jmi', *{arguments}]\nfrom jmi.cli import main\n"
    line += "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit): main()"
    modules = loaded(line)
    assert "typer" in modules
    assert not {"jax", "numpy", "rich.console", "matplotlib", "huggingface_hub"} & modules


def test_the_version_is_shown():
    assert run("--version").stdout == f"jmi {jmi.__version__}\n"


@dataclasses.dataclass(frozen=True)
class Pair:
    first: int = 1
    second: str = "two"


def someones(word: str = "hello", *, pair: Pair) -> None:
    """Say a word."""
    print(word, pair)


def test_other_packages_bring_commands_and_cannot_break_those_that_are_there(monkeypatch):
    brought = [
        EntryPoint("someones", f"{someones.__module__}:someones", commands.GROUP),
        EntryPoint("broken", "jmi.no_such_module:command", commands.GROUP),
        *(EntryPoint(name, value, commands.GROUP) for name, value in OWN.items()),
    ]
    monkeypatch.setattr(commands, "entry_points", lambda group: brought)
    done = run("someones", "--second", "three")
    assert (done.returncode, done.stdout) == (0, "hello Pair(first=1, second='three')\n")
    assert done.stderr.startswith(
        "warning: the command broken cannot be loaded from jmi.no_such_module:command: "
    )
    assert len(done.stderr.splitlines()) == 1
    assert "Say a word." in run("--help").stdout
    assert run("sites", "--names").returncode == 0


def test_without_an_installed_package_the_commands_are_read_from_the_checkout(monkeypatch):
    monkeypatch.setattr(jmi, "__file__", str(ROOT / "jmi" / "__init__.py"))
    monkeypatch.setattr(commands, "entry_points", lambda group: [])
    assert {name: entry.value for name, entry in commands.find_commands().items()} == OWN


def test_float64_is_computed_in_float64_and_left_behind(tmp_path):
    file = tmp_path / "x.json"
    assert run("knockout", "--dtype", "float64", "--output", file).returncode == 0
    assert not jax.config.jax_enable_x64
    record = json.loads(file.read_text())
    assert record["model"]["dtype"] == "float64"
    with jax.enable_x64(True):
        lm = jmi_models.load("atlas", dtype="float64")
        result = jmi.interp.knockout(lm, "The capital of France is", keys=-2)
    assert record["kl_divergence"] == pytest.approx(result.kl, rel=1e-12)
    single = jmi.interp.knockout(jmi_models.load("atlas"), "The capital of France is", keys=-2)
    assert record["kl_divergence"] != single.kl


@pytest.mark.parametrize("name", ["patch", "attribute"])
def test_pairs_run_in_float64(name, tmp_path):
    files = [tmp_path / f"{dtype}.json" for dtype in ("float64", "float32")]
    for file in files:
        assert run(name, "--dtype", file.stem, "--output", file).returncode == 0
    double, single = (json.loads(file.read_text()) for file in files)
    assert double["model"]["dtype"] == "float64"
    found = [np.asarray(record["recovery" if name == "patch" else "shares"]) for record in (double, single)]
    assert 0 < np.abs(found[0] - found[1]).max() < 1e-4
    # Numbers of single precision are among those of double precision, but not all of those.
    assert (np.float32(found[0]) != found[0]).any()


def test_a_dtype_that_jax_lacks_is_one_clear_error():
    assert "use float32, bfloat16, float16 or float64" in refused("knockout", "--dtype", "float128")
