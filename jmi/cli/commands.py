"""Where commands come from, and how their options are typed."""

import dataclasses
import inspect
import tomllib
import typing
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import jmi

GROUP = "jmi.commands"
"""Entry points of this group are commands: their name is that of the command, their value a function."""

Command = Callable[..., None]


def find_commands() -> dict[str, EntryPoint]:
    """Commands by name, of every installed package; in a checkout that is not installed, also its own."""
    found = {entry.name: entry for entry in entry_points(group=GROUP)}
    project = Path(str(jmi.__file__)).parents[1] / "pyproject.toml"
    if not any(entry.value.startswith("jmi_models.") for entry in found.values()) and project.is_file():
        table = tomllib.loads(project.read_text())["project"]["entry-points"][GROUP]
        found |= {name: EntryPoint(name, value, GROUP) for name, value in table.items()}
    return found


def as_typed(command: Command) -> Command:
    """A command as the command line calls it, with one option after the other.

    A parameter that is a dataclass bundles options: its fields are typed as if they were parameters.
    """
    signature = inspect.signature(command, eval_str=True)
    bundles: dict[str, Any] = {
        name: parameter.annotation
        for name, parameter in signature.parameters.items()
        if dataclasses.is_dataclass(parameter.annotation)
    }
    parameters = [*_flat(signature)]

    def typed(**given: Any) -> None:
        for name, bundle in bundles.items():
            given[name] = bundle(
                **{field.name: given.pop(field.name) for field in dataclasses.fields(bundle)}
            )
        command(**given)

    typed.__doc__ = command.__doc__
    typed.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    typed.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return typed


def _flat(signature: inspect.Signature) -> Iterator[inspect.Parameter]:
    """The parameters, with the fields of bundles in their place."""
    for parameter in signature.parameters.values():
        if not dataclasses.is_dataclass(parameter.annotation):
            yield parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            continue
        hints = typing.get_type_hints(parameter.annotation, include_extras=True)
        for field in dataclasses.fields(parameter.annotation):
            yield inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=field.default,
                annotation=hints[field.name],
            )
