"""What the names of folders and repositories say of a dictionary, where its files do not."""

import os
import re
from pathlib import Path
from typing import Any

from jmi.errors import OutputError


def said(path: Path, pattern: str) -> re.Match[str] | None:
    """The innermost part of a path that matches a pattern as a whole, or None.

    A folder of the hub's cache, ``models--owner--name``, counts as the repository's ``name``. Links are not
    followed: they lead to names that say nothing.
    """
    for part in reversed(absolute(path).parts):
        name = part.split("--")[-1] if part.startswith("models--") else part
        found = re.fullmatch(pattern, name, re.ASCII)
        if found:
            return found
    return None


def absolute(path: Path) -> Path:
    """A path from the root, links not followed."""
    return Path(os.path.abspath(path))


def beside(site: str | None, point: str) -> str | None:
    """The site at another point of the same layer; None where ``site`` is in no layer."""
    found = re.match(r"blocks\.(\d+|\*)\.", site or "", re.ASCII)
    return found[0] + point if found else None


def sites(reads: str | None, writes: str | None = None, *, transcoder: bool = False) -> dict[str, Any]:
    """The fields of a dictionary that say where it belongs; an SAE stands for what it reads."""
    return {
        "kind": "transcoder" if transcoder else "sae",
        "hook_in": reads,
        "hook_out": writes if transcoder else reads,
        # Heads are two axes in a model, and one in the files.
        "hook_z": reads is not None and reads.endswith("attn.hook_z"),
    }


def make_folder(folder: Path) -> None:
    """Make a folder to write to; OutputError where there can be none."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: this folder cannot be made: {error.strerror}") from None
