"""``jmi features``: which features are active on a prompt."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

import jmi_sparse
from jmi import cli
from jmi.artefacts import write_json
from jmi.cli.options import Files, described, record
from jmi.errors import ArgumentError
from jmi_models.commands.model import ModelOptions
from jmi_sparse.commands.dictionaries import PROMPT, DictionaryOptions, named

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from jmi_sparse.features import ActiveFeatures
    from jmi_sparse.scoring.labels import Labels

_ACROSS = 24
"""Features in the picture."""


def command(
    prompt: Annotated[str, typer.Argument(help="Text to run.")] = PROMPT,
    *,
    position: Annotated[
        list[int] | None, typer.Option(help="Token to list (repeatable).", show_default="all tokens")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="How many features of each token and site to list.")] = 5,
    given: DictionaryOptions,
    source: ModelOptions,
    files: Files,
) -> None:
    """List the features that are active on PROMPT, token by token.

    Features are named layer:id. The JSON has all active ones, up to 256 of each token and site.
    """
    given.check()
    files.check()
    with source.loaded() as lm:
        labels, dictionaries = given.known_labels(), given.loaded(lm)
        found = jmi_sparse.features(lm, prompt, dictionaries, capacity=256)
        tokens = [lm.token_string(token) for token in found.tokens[0]]
        places = _places(position, len(tokens))
        if files.plot is not None:
            files.draw(_figure(found, tokens, labels, f"{lm.name}: {prompt!r}"))
        if files.output is not None:
            written = record(
                "features",
                model=described(lm),
                dictionaries=given.described(dictionaries),
                prompt=prompt,
                token_ids=found.tokens[0],
                tokens=tokens,
                options={"position": position, "top": top},
                overflowed=bool(found.overflowed.any()),
                features=_active(found, places, labels),
            )
            write_json(files.output, written)
        cli.console.say(f"{lm.name}  {prompt!r}, {len(tokens)} tokens, {len(found.sites)} sites")
        _print(found, tokens, places, labels, top)


def _places(asked: list[int] | None, length: int) -> list[int]:
    """Positions from the start; ArgumentError for one that is not there."""
    for position in asked or ():
        if not -length <= position < length:
            raise ArgumentError(f"--position {position}: the prompt has {length} tokens")
    return [p % length for p in asked] if asked else list(range(length))


def _active(found: "ActiveFeatures", places: list[int], labels: "Labels") -> list[dict[str, Any]]:
    rows = []
    for n, (site, layer) in enumerate(zip(found.sites, found.layers, strict=True)):
        for position in places:
            for feature, value in zip(found.ids[n, 0, position], found.values[n, 0, position], strict=True):
                if feature >= 0:
                    one = {"site": site, "layer": layer, "position": position, "id": int(feature)}
                    rows.append({**one, "activation": float(value), "label": labels.get(layer, int(feature))})
    return rows


def _print(found: "ActiveFeatures", tokens: list[str], places: list[int], labels: "Labels", top: int) -> None:
    rows = []
    for position in places:
        for n, layer in enumerate(found.layers):
            ids, values = found.ids[n, 0, position], found.values[n, 0, position]
            active = int((ids >= 0).sum())
            for k in range(min(top, active)):
                first = (str(position), repr(tokens[position])) if n == k == 0 else ("", "")
                feature = named((layer, int(ids[k])), labels)
                rows.append((*first, feature, f"{values[k]:.4g}", f"{active}" if k == 0 else ""))
            if not active:
                rows.append((str(position), repr(tokens[position]), f"{layer}: none", "", "0"))
    cli.console.show_table(("", "token", "feature", "activation", "active"), rows, left=3)
    if found.overflowed.any():
        cli.console.say("more than 256 features are active at some token; the smallest are left out")


def _figure(found: "ActiveFeatures", tokens: list[str], labels: "Labels", title: str) -> "Figure":
    """The strongest features, token by token."""
    import numpy as np

    from jmi.plots.heatmap import plot_heatmap

    chosen = found.strongest(_ACROSS)
    if not chosen:
        raise ArgumentError("--plot: no feature is active on this prompt")
    values = np.zeros((len(chosen), len(tokens)))
    for row, (site, feature) in enumerate(chosen):
        n = found.sites.index(site)
        values[row] = np.where(found.ids[n, 0] == feature, found.values[n, 0], 0).sum(-1)
    names = [named((found.layers[found.sites.index(site)], i), labels) for site, i in chosen]
    return plot_heatmap(values, ("feature", names), ("token", tokens), title, "activation")
