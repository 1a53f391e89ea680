"""The registry: published dictionaries by name, with what their files do not say."""

import dataclasses
import difflib
import functools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jmi.checks import shown
from jmi.errors import ArgumentError
from jmi_sparse.registry.templates import expanded

FILE = Path(__file__).with_name("releases.json")
_NEAREST = 4


@dataclasses.dataclass(frozen=True)
class Entry:
    """A published dictionary, or a set of them.

    Attributes:
      name: ``release/id``, as `jmi_sparse.load` takes it.
      release: the part of it before the id.
      repo: on the hub.
      path: of its folder or file there; empty for the whole repository.
      format: a name of `jmi_sparse.load`.
      model: that it was trained on.
      hook: the site that it reads; None where only its files say that.
      norm_factor: what its inputs were multiplied by in training, where its files lack that.
      normalize_activations: instead of what its config says.
      layers: how many a set of several has, where that is known.
      centred: it was trained on a model whose writes to the residual stream have mean 0 over its width.
    """

    name: str
    release: str
    repo: str
    path: str
    format: str
    model: str
    hook: str | None = None
    norm_factor: float | None = None
    normalize_activations: str | None = None
    layers: int | None = None
    centred: bool = False


@dataclasses.dataclass(frozen=True)
class Release:
    """Dictionaries that were published together.

    Attributes:
      name: of the release.
      model: that they were trained on.
      hooks: the sites that they read, with the layer open; empty where only their files say that.
      names: of each, as `jmi_sparse.load` takes it.
    """

    name: str
    model: str
    hooks: tuple[str, ...]
    names: tuple[str, ...] = dataclasses.field(repr=False)

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.names)


@functools.cache
def by_release() -> Mapping[str, tuple[Entry, ...]]:
    """All entries, by the name of their release."""
    listed = json.loads(FILE.read_text(encoding="utf-8"))
    return {name: tuple(_entries(name, release)) for name, release in listed.items()}


def _entries(name: str, release: dict[str, Any]) -> list[Entry]:
    groups = release.pop("groups")
    found = []
    for line in (line for group in groups for line in expanded(group)):
        factor = line.get("norm_factor")
        found.append(
            Entry(
                name=f"{name}/{line['id']}".removesuffix("/"),
                release=name,
                path=line["path"],
                hook=line.get("hook"),
                norm_factor=None if factor is None else float(factor),
                **release,
            )
        )
    return found


@functools.cache
def by_name() -> Mapping[str, Entry]:
    """All entries, by name."""
    return {entry.name: entry for entries in by_release().values() for entry in entries}


@functools.cache
def by_repo() -> Mapping[str, tuple[Entry, ...]]:
    """All entries, by their repository."""
    found: dict[str, list[Entry]] = {}
    for entry in by_name().values():
        found.setdefault(entry.repo, []).append(entry)
    return {repo: tuple(entries) for repo, entries in found.items()}


def nearest(name: str) -> list[str]:
    """The names most like one that is not there; all of its release, where that is there."""
    release, _, rest = name.partition("/")
    if release in by_release():
        names = [entry.name for entry in by_release()[release]]
        return difflib.get_close_matches(name, names, _NEAREST, cutoff=0)
    close = [
        near
        for given in (name, release)
        for near in difflib.get_close_matches(given, by_release(), _NEAREST, cutoff=0.8)
    ]
    whole = [f"{one}/{rest}" for one in close]
    return [there for there in whole if there in by_name()] or close


def releases(match: str = "") -> list[Release]:
    """Published dictionaries that `jmi_sparse.load` knows by name.

    Args:
      match: a part of the name of a release, of a dictionary, of a model or a repository, in any case.

    Returns:
      The releases, by name, each with the dictionaries that match; all of them where the release does.

    Source: SAELens's list of pretrained SAEs, and the sets that circuit-tracer names.

    Example:
      >>> import jmi_sparse
      >>> [found] = jmi_sparse.releases("gemma-scope-2b-pt-res-canonical/layer_12/width_16k")
      >>> found.names
      ('gemma-scope-2b-pt-res-canonical/layer_12/width_16k/canonical',)
      >>> found.model, found.hooks, found.count
      ('gemma-2-2b', ('blocks.*.hook_resid_post',), 1)
    """
    if not isinstance(match, str):
        raise ArgumentError(f"match={shown(match)}: give a part of a name")
    part, found = match.lower(), []
    for name, entries in sorted(by_release().items()):
        first = entries[0]
        whole = any(part in text.lower() for text in (name, first.model, first.repo))
        kept = [entry for entry in entries if whole or part in entry.name.lower()]
        if kept:
            hooks = {re.sub(r"\.\d+\.", ".*.", entry.hook) for entry in kept if entry.hook}
            names = tuple(entry.name for entry in kept)
            found.append(Release(name, first.model, tuple(sorted(hooks)), names))
    return found
