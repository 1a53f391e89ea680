"""``jmi vocab-scan``: the tokens that each feature writes."""

from typing import TYPE_CHECKING, Annotated, Any

import typer
from tqdm import tqdm

import jmi_sparse
from jmi import cli
from jmi.artefacts import write_json
from jmi.cli.options import Files, described, record
from jmi_models.commands.model import ModelOptions
from jmi_sparse.commands.dictionaries import DictionaryOptions, check_written, named, vocabulary_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def command(
    *,
    layer: Annotated[
        list[int] | None, typer.Option(help="Layer to scan (repeatable).", show_default="all layers")
    ] = None,
    step: Annotated[int, typer.Option(min=1, help="Take each so many-th feature.")] = 1,
    tokens: Annotated[int, typer.Option(min=1, help="How many tokens of each feature to keep.")] = 10,
    top: Annotated[int, typer.Option(min=1, help="How many features to list.")] = 20,
    chunk: Annotated[int, typer.Option(min=1, help="Features at a time; fewer need less memory.")] = 4096,
    given: DictionaryOptions,
    source: ModelOptions,
    files: Files,
) -> None:
    """Scan whole dictionaries for the tokens that their decoder rows point at.

    Of each feature the nearest tokens by cosine with the unembedding are found; those that point most clearly
    at one are listed. The JSON has all features, in this order.
    """
    given.check()
    files.check()
    with source.loaded() as lm:
        labels, dictionaries = given.known_labels(), given.loaded(lm)
        check_written(lm, dictionaries)
        found: list[dict[str, Any]] = []
        scan = jmi_sparse.vocab_scan(
            dictionaries, vocabulary_of(lm), layers=layer, step=step, k=tokens, chunk=chunk
        )
        for part in tqdm(scan, unit=" layers", disable=None):
            found += [
                {"layer": part.layer, "id": int(feature), "cosines": near, "token_ids": ids}
                for feature, near, ids in zip(part.features, part.cosines, part.tokens, strict=True)
            ]
        found.sort(key=lambda one: -float(one["cosines"][0]))
        if files.plot is not None:
            files.draw(_figure([one["cosines"][0] for one in found], f"{lm.name}: {len(found):,} features"))
        if files.output is not None:
            rows = [
                {
                    **one,
                    "tokens": [lm.token_string(int(i)) for i in one["token_ids"]],
                    "label": labels.get(one["layer"], one["id"]),
                }
                for one in found
            ]
            options = {"layer": layer, "step": step, "tokens": tokens, "chunk": chunk}
            written = record(
                "vocab-scan",
                model=described(lm),
                dictionaries=given.described(dictionaries),
                options=options,
                features=rows,
            )
            write_json(files.output, written)
        cli.console.say(f"{lm.name}  {len(found):,} features")
        listed = [
            (
                named((one["layer"], one["id"]), labels),
                f"{one['cosines'][0]:.4f}",
                " ".join(repr(lm.token_string(int(i))) for i in one["token_ids"][:6]),
            )
            for one in found[:top]
        ]
        cli.console.show_table(("feature", "cosine", "tokens"), listed, left=1)


def _figure(cosines: list[float], title: str) -> "Figure":
    from jmi.plots import new_figure

    figure = new_figure(6.5, 4, title)
    axes = figure.subplots()
    axes.hist(cosines, bins=60)
    axes.set_xlabel("cosine with the nearest token")
    axes.set_ylabel("features")
    return figure
