"""What importing costs, told by the modules that a process has loaded; the names that packages hand on."""

import ast
import importlib
import json
import pkgutil
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import jmi
import jmi.cli
import jmi.interp
import jmi.tokenizers
import jmi_models
import jmi_sparse
from jmi.lazy import homes_in

ROOT = Path(__file__).parents[1]
LAZY = (jmi, jmi.cli, jmi.interp, jmi.tokenizers, jmi_models, jmi_sparse, jmi_sparse.bench)
SLOW_ONES = {
    *(
        "tokenizers",
        "scipy",
        "flax",
        "matplotlib",
        "huggingface_hub",
        "safetensors",
        "psutil",
        "typer",
        "rich",
        "optax",
        "jinja2",
    )
}


def fresh(code: str) -> str:
    """What code prints in a process of its own."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def loaded(code: str) -> set[str]:
    """The modules that code loads in a process of its own."""
    return {*json.loads(fresh(f"{code}\nimport json, sys; print(json.dumps([*sys.modules]))"))}


def test_packages_alone_import_neither_jax_nor_numpy():
    modules = loaded("import jmi, jmi.interp, jmi_models, jmi_sparse; jmi.__version__; jmi.ArgumentError")
    assert "jmi.errors" in modules
    assert not {"jax", "numpy", "typer"} & modules


@pytest.mark.parametrize(
    "code",
    [
        "from jmi import forward, sweep, interp, LanguageModel",
        "from jmi.interp import *; from jmi import *",
    ],
)
def test_names_of_jmi_import_jax_and_nothing_else_that_is_slow(code):
    modules = loaded(code)
    assert {"jax", "jmi.engine.forward"} <= modules
    assert modules.isdisjoint(SLOW_ONES)


def test_statistics_need_scipy_only_when_they_are_computed():
    assert "scipy" not in loaded("from jmi import stats; stats.sign_flip([1.0, 2.0])")
    assert "scipy.special" in loaded("from jmi import stats; stats.bootstrap([1.0, 2.0])")


@pytest.mark.parametrize("package", LAZY, ids=lambda package: package.__name__)
def test_every_name_of_a_stub_is_there(package):
    homes = homes_in(package.__name__, Path(package.__file__).with_suffix(".pyi").read_text())
    assert package.__all__ == [*homes]
    assert {*homes} <= {*dir(package)}
    for name, home in homes.items():
        module = importlib.import_module(home.module)
        assert getattr(package, name) is (module if home.name is None else getattr(module, home.name))
    # A plain import there would cost every user its time, and no type checker would see it.
    body = ast.parse(Path(package.__file__).read_text()).body
    assert [ast.unparse(line) for line in body if "import" in ast.unparse(line)[:20]] == [
        "from jmi import lazy"
    ]


def test_a_function_keeps_its_name_when_the_module_of_that_name_is_imported(tmp_path):
    house = tmp_path / "house"
    house.mkdir()
    (house / "__init__.py").write_text("from jmi import lazy\n\nlazy.attach(__name__)\n")
    (house / "__init__.pyi").write_text("from . import hall as hall\nfrom house.door import door as door\n")
    (house / "door.py").write_text("def door(): ...\n")
    (house / "hall.py").write_text("hall = 1\n")
    path = f"import sys; sys.path.append({str(tmp_path)!r})"
    for order in ("{0}; {1}", "{1}; {0}"):
        lines = order.format("import house.door, house.hall", "from house import door, hall")
        said = fresh(f"{path}; {lines}; import house; print(house.door, door, house.hall, hall)")
        assert said.count("function door") == 2
        assert said.count("module 'house.hall'") == 2


def test_submodules_are_attributes_and_other_names_are_not():
    assert "module 'jmi.align'" in fresh("import jmi; print(jmi.align)")
    with pytest.raises(AttributeError, match="'jmi' has no attribute 'forwards'"):
        _ = jmi.forwards
    with pytest.raises(ImportError, match="forwards"):
        exec("from jmi import forwards")
    assert not hasattr(jmi, "__wrapped__")


def test_what_a_submodule_lacks_is_not_hidden(monkeypatch):
    monkeypatch.setitem(sys.modules, "numpy", None)
    monkeypatch.delitem(sys.modules, "jmi.align", raising=False)
    monkeypatch.delitem(vars(jmi), "align", raising=False)
    with pytest.raises(ModuleNotFoundError, match="numpy"):
        _ = jmi.align


def test_the_version_is_written_once_and_every_package_is_typed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" in project["project"]["dynamic"]
    source = (ROOT / project["tool"]["hatch"]["version"]["path"]).read_text()
    assert re.search(r'^__version__ = "(.*)"$', source, re.MULTILINE)[1] == jmi.__version__
    for package in project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]:
        assert (ROOT / package / "py.typed").is_file()


@pytest.mark.slow
def test_any_module_may_be_imported_first():
    packages = ("jmi", "jmi_models", "jmi_sparse")
    paths = [(name, importlib.import_module(name).__path__) for name in packages]
    names = [found.name for name, path in paths for found in pkgutil.walk_packages(path, f"{name}.")]
    fresh(
        f"import importlib, sys, jax\n"
        f"for name in {names}:\n"
        f"    for other in [m for m in sys.modules if m.partition('.')[0] in {packages}]:\n"
        f"        del sys.modules[other]\n"
        f"    importlib.import_module(name)\n"
    )
