"""Writes docs/api.md, every public name with its signature and first paragraph: ``python -m docs.api``.

All of it is read from source and docstrings, so the page says what they say. A test compares the two.
"""

import ast
import functools
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from jmi.lazy import homes_in

PAGE = Path(__file__).with_name("api.md")
PACKAGES = ("jmi", "jmi.interp", "jmi_models", "jmi_sparse", "jmi_sparse.bench")
MODULES = ("jmi.metrics", "jmi.stats", "jmi.tree")
CONTRACT = ("is_local", "is_causal", "check")
"""Methods that every intervention has: said once, at `jmi.Intervention`."""

WIDTH = 100
HEAD = """# Every public name

Made from the docstrings by `python -m docs.api`: do not edit. `help(name)` says more: arguments, results,
errors, an example.
"""


def page() -> str:
    """The whole page."""
    return "\n".join([HEAD, *map(_section, (*PACKAGES, *MODULES))])


def _section(where: str) -> str:
    module = importlib.import_module(where)
    entries = [_entry(where, name, home, inner) for name, home, inner in _names(where, module)]
    return "\n".join([f"## {where}\n", _paragraph(inspect.getdoc(module)), "", *entries])


def _names(where: str, module: ModuleType) -> Iterator[tuple[str, ModuleType, str]]:
    """(public name, module that defines it, its name there), in alphabetical order."""
    if where in MODULES:
        for name in sorted(_definitions(module)):
            if not name.startswith("_"):
                yield name, module, name
        return
    stub = Path(str(module.__file__)).with_suffix(".pyi").read_text(encoding="utf-8")
    for name, home in sorted(homes_in(where, stub).items()):
        if home.name is not None:
            yield name, importlib.import_module(home.module), home.name


@functools.cache
def _definitions(module: ModuleType) -> dict[str, tuple[Any, str]]:
    """Functions, classes and documented values of a module: their source, and the docstring of a value."""
    body = ast.parse(inspect.getsource(module)).body
    found: dict[str, tuple[Any, str]] = {}
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found[node.name] = node, ast.get_docstring(node) or ""
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            text = after.value if isinstance(after, ast.Expr) else None
            if isinstance(text, ast.Constant) and isinstance(text.value, str):
                found[node.targets[0].id] = node, inspect.cleandoc(text.value)
    return found


def _entry(where: str, name: str, module: ModuleType, inner: str) -> str:
    if inner not in _definitions(module):
        # A package hands it on: read it where it is defined.
        module = importlib.import_module(getattr(module, inner).__module__)
    node, text = _definitions(module)[inner]
    made = getattr(module, inner)
    shown = _class(made, node) if isinstance(node, ast.ClassDef) else _signature(node)
    lines = [f"### {where}.{name}", "", f"```text\n{shown}\n```", "", _paragraph(text), ""]
    if isinstance(node, ast.ClassDef) and (methods := _methods(node)):
        lines += [f"- `{_short(each)}`: {_paragraph(said)}" for each, said in methods] + [""]
    return "\n".join(lines)


def _methods(node: ast.ClassDef) -> list[tuple[ast.FunctionDef, str]]:
    """Public methods and properties of a class that have a docstring."""
    found = [each for each in node.body if isinstance(each, ast.FunctionDef) and each.name[0] != "_"]
    return [(each, text) for each in found if each.name not in CONTRACT and (text := ast.get_docstring(each))]


def _short(node: ast.FunctionDef) -> str:
    """A method on one line, without annotations."""
    if any(ast.unparse(decorator).endswith("property") for decorator in node.decorator_list):
        return node.name
    return f"{node.name}({', '.join(_parts(_without_self(node.args), False))})"


def _signature(node: ast.stmt) -> str:
    """A function, or a documented value, as written."""
    if not isinstance(node, ast.FunctionDef):
        return ast.unparse(node)
    result = "" if node.returns is None else f" -> {ast.unparse(node.returns)}"
    return _wrapped(node.name, _parts(node.args, True), result)


def _class(made: Any, node: ast.ClassDef) -> str:
    """How a class is called: by its ``__init__``, or by its fields, inherited ones among them."""
    if issubclass(made, Exception) or getattr(made, "_is_protocol", False):
        return f"class {node.name}({', '.join(map(ast.unparse, node.bases))})"
    for each in node.body:
        if isinstance(each, ast.FunctionDef) and each.name == "__init__":
            return _wrapped(node.name, _parts(_without_self(each.args), True), "")
    fields: dict[str, str] = {}
    for base in reversed(made.__mro__):
        if base.__module__.startswith("jmi"):
            body = _definitions(importlib.import_module(base.__module__))[base.__name__][0].body
            fields |= {ast.unparse(f.target): _field(f) for f in body if isinstance(f, ast.AnnAssign)}
    parts: list[str] = []
    for name, parameter in inspect.signature(made).parameters.items():
        if name in fields:
            only = parameter.kind is parameter.KEYWORD_ONLY and "*" not in parts
            parts += ["*", fields[name]] if only else [fields[name]]
    return _wrapped(node.name, parts, "")


def _field(node: ast.AnnAssign) -> str:
    """``name: type = default``; of a field that is made by a call, its ``default=``."""
    value: Any = node.value
    if isinstance(value, ast.Call):
        value = next((k.value for k in value.keywords if k.arg == "default"), None)
    default = "" if value is None else f" = {ast.unparse(value)}"
    return f"{ast.unparse(node.target)}: {ast.unparse(node.annotation)}{default}"


def _without_self(args: ast.arguments) -> ast.arguments:
    """The arguments of a method but its first."""
    rest = {field: getattr(args, field) for field in args._fields if field != "args"}
    return ast.arguments(args=args.args[1:], **rest)


def _parts(args: ast.arguments, annotated: bool) -> list[str]:
    """Each argument as text, ``*`` among them."""
    unset: list[Any] = [None] * (len(args.args) - len(args.defaults))
    found = [_argument(a, d, annotated) for a, d in zip(args.args, [*unset, *args.defaults], strict=True)]
    star = (
        [f"*{_argument(args.vararg, None, annotated)}"] if args.vararg else ["*"] if args.kwonlyargs else []
    )
    named = zip(args.kwonlyargs, args.kw_defaults, strict=True)
    found += [*star, *(_argument(a, d, annotated) for a, d in named)]
    return found + ([f"**{_argument(args.kwarg, None, annotated)}"] if args.kwarg else [])


def _argument(arg: ast.arg, default: ast.expr | None, annotated: bool) -> str:
    kind = f": {ast.unparse(arg.annotation)}" if annotated and arg.annotation else ""
    equals = " = " if kind else "="
    return f"{arg.arg}{kind}" + ("" if default is None else f"{equals}{ast.unparse(default)}")


def _wrapped(name: str, parts: list[str], result: str) -> str:
    line = f"{name}({', '.join(parts)}){result}"
    if len(line) <= WIDTH:
        return line
    return "\n".join([f"{name}(", *(f"    {part}," for part in parts), f"){result}"])


def _paragraph(text: str | None) -> str:
    """The first paragraph of a docstring, on one line."""
    return " ".join((text or "").split("\n\n")[0].split())


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
