"""``jmi probe-features``: features whose decoder rows point at a word."""

from typing import TYPE_CHECKING, Annotated

import typer

import jmi_sparse
from jmi import cli
from jmi.artefacts import write_json
from jmi.cli.options import Files, described, record
from jmi_models.commands.model import ModelOptions
from jmi_sparse.commands.dictionaries import DictionaryOptions, check_written, direction_of, named

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SUGGESTED, _DRAWN = 3, 40


def command(
    word: Annotated[str, typer.Argument(help="One token, with its space before it.")] = " Paris",
    *,
    target: Annotated[
        int | None, typer.Option(help="Layer that is written.", show_default="the best of all layers")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="How many features to list.")] = 20,
    dot: Annotated[bool, typer.Option("--dot", help="Rank by dot products, not by cosines.")] = False,
    given: DictionaryOptions,
    source: ModelOptions,
    files: Files,
) -> None:
    """List the features whose decoder rows point most along WORD's direction in the unembedding.

    What a row points at is not what a feature does: try it with jmi inject.
    """
    given.check()
    files.check()
    with source.loaded() as lm:
        token, labels = lm.token_id(word), given.known_labels()
        dictionaries = given.loaded(lm)
        check_written(lm, dictionaries)
        targets, direction = None if target is None else [target], direction_of(lm, token)
        found = jmi_sparse.best_rows(dictionaries, direction, targets=targets, k=top, cosine=not dot)
        layers = list(dict.fromkeys(row.layer for row in found))[:_SUGGESTED]
        suggested = [next((row.layer, row.id) for row in found if row.layer == layer) for layer in layers]
        names = [named((row.layer, row.id), labels) for row in found]
        if files.plot is not None:
            files.draw(
                _figure(
                    names, [row.score for row in found], "dot" if dot else "cosine", f"{lm.name}: {word!r}"
                )
            )
        if files.output is not None:
            written = record(
                "probe-features",
                model=described(lm),
                dictionaries=given.described(dictionaries),
                word=word,
                token_id=token,
                options={"target": target, "top": top, "cosine": not dot},
                features=[{**row._asdict(), "label": labels.get(row.layer, row.id)} for row in found],
                suggested=suggested,
            )
            write_json(files.output, written)
        cli.console.say(f"{lm.name}  {word!r}, token {token}")
        rows = [(name, str(row.target), f"{row.score:+.4f}") for name, row in zip(names, found, strict=True)]
        cli.console.show_table(("feature", "writes in", "dot" if dot else "cosine"), rows, left=1)
        cli.console.say("one of each layer: " + " ".join(f"{layer}:{index}" for layer, index in suggested))


def _figure(names: list[str], scores: list[float], measure: str, title: str) -> "Figure":
    from jmi.plots import new_figure, shown

    names, scores = names[:_DRAWN], scores[:_DRAWN]
    figure = new_figure(6.5, 1.5 + 0.25 * len(names), title)
    axes = figure.subplots()
    axes.set_xlabel(measure)
    axes.barh(range(len(names)), scores)
    axes.set_yticks(range(len(names)), [shown(name) for name in names], fontsize=8)
    axes.invert_yaxis()
    return figure
