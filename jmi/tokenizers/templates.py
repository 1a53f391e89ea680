"""Chat templates of a model folder, kept as text: how transformers turns a conversation into one prompt."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jmi.errors import TokenizerError, printable
from jmi.reading import read_if_there, read_text

DEFAULT = "default"
"""The name of the template that a model has without naming it."""

_FILE, _MORE = "chat_template.jinja", "additional_chat_templates/*.jinja"
_KEY = "chat_template"


def read(folder: Path) -> dict[str, str]:
    """Templates of a folder, name -> text; those of files of their own before ``tokenizer_config.json``.

    Raises:
      TokenizerError: a template is no text.
    """
    files = {path.stem: path for path in sorted(folder.glob(_MORE))}
    if os.path.lexists(folder / _FILE):
        files[DEFAULT] = folder / _FILE
    if files:
        return {name: read_text(path, TokenizerError) for name, path in files.items()}
    return _said(read_if_there(folder / "tokenizer_config.json", TokenizerError).get(_KEY))


def as_config(templates: Mapping[str, str]) -> dict[str, Any]:
    """What ``tokenizer_config.json`` says of them, as transformers reads it."""
    if not templates:
        return {}
    if list(templates) == [DEFAULT]:
        return {_KEY: templates[DEFAULT]}
    return {_KEY: [{"name": name, "template": text} for name, text in templates.items()]}


def _said(value: Any) -> dict[str, str]:
    if value is None:
        return {}
    named = [{"name": DEFAULT, "template": value}] if isinstance(value, str) else value
    if isinstance(named, list) and all(isinstance(one, dict) for one in named):
        found = [(one.get("name"), one.get("template")) for one in named]
        if all(isinstance(name, str) and isinstance(text, str) for name, text in found):
            return dict(found)
    raise TokenizerError(
        f"tokenizer_config.json: {_KEY} must be a text, or a list of objects with name and template, not "
        f"{printable(type(value).__name__)}; fix it"
    )
