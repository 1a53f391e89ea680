"""Packages that import what they hand on when it is first used: ``import jmi`` does not import JAX."""

import ast
import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple


class Home(NamedTuple):
    """Where a name comes from: a module, and the name in it; None for the module itself."""

    module: str
    name: str | None


class LazyPackage(ModuleType):
    """A package that imports the home of a name when the name is asked for.

    Attributes:
      _homes: the names it hands on.
    """

    _homes: dict[str, Home]

    def __getattr__(self, name: str) -> Any:
        if name in self._homes:
            home = self._homes[name]
            found = importlib.import_module(home.module)
            found = found if home.name is None else getattr(found, home.name)
            super().__setattr__(name, found)
            return found
        return _submodule(self.__name__, name)

    def __setattr__(self, name: str, value: Any) -> None:
        # When it imports jmi.interp.knockout, Python sets that module here; the name is the function's.
        taken = isinstance(value, ModuleType) and name in self._homes and self._homes[name].name
        if not taken:
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self._homes})


def attach(package: str) -> None:
    """Make a package hand on, when they are asked for, the names that its ``__init__.pyi`` imports.

    The stub is the only list of these names: type checkers and editors read it, and so does this
    function. ``__all__`` is made from it. Submodules are found as attributes, too.

    Args:
      package: its ``__name__``; call it at the end of its ``__init__.py``.
    """
    module = sys.modules[package]
    stub = Path(str(module.__file__)).with_suffix(".pyi")
    homes = homes_in(package, stub.read_text(encoding="utf-8"))
    vars(module).update(_homes=homes, __all__=list(homes))
    module.__class__ = LazyPackage


def homes_in(package: str, stub: str) -> dict[str, Home]:
    """All names that the text of a stub imports."""
    lines = [line for line in ast.parse(stub).body if isinstance(line, ast.ImportFrom)]
    return {
        alias.name: Home(f"{package}.{alias.name}", None)
        if line.level
        else Home(str(line.module), alias.name)
        for line in lines
        for alias in line.names
    }


def _submodule(package: str, name: str) -> ModuleType:
    """The submodule of this name; AttributeError where there is none."""
    full = f"{package}.{name}"
    try:
        if name.startswith("__"):
            raise ModuleNotFoundError(name=full)
        return importlib.import_module(full)
    except ModuleNotFoundError as error:
        if error.name != full:
            raise
        raise AttributeError(f"module {package!r} has no attribute {name!r}") from None
