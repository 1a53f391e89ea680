"""``jmi correct``: commit a model to a word, then steer later layers to another."""

from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

import jmi
import jmi_sparse
from jmi import cli
from jmi.artefacts import write_json
from jmi.cli.options import Files, described, record
from jmi.errors import ArgumentError
from jmi_models.commands.model import ModelOptions
from jmi_sparse.commands.dictionaries import DictionaryOptions, features_of, named

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from jmi_sparse.correcting import Correction


def command(
    prompt: Annotated[str, typer.Argument(help="Text to run.")] = "The capital of France is",
    *,
    commit: Annotated[
        list[str] | None, typer.Option(help="Feature to commit with, layer:id (repeatable).")
    ] = None,
    correct: Annotated[
        list[str] | None, typer.Option(help="Feature to correct with, layer:id (repeatable).")
    ] = None,
    suppress: Annotated[
        list[str] | None, typer.Option(help="Feature to subtract with the commitment (repeatable).")
    ] = None,
    word: Annotated[
        tuple[str, str] | None, typer.Option(help="The word committed to, and the one that corrects it.")
    ] = None,
    position: Annotated[int, typer.Option(help="Token at which all of it is written.")] = -1,
    commit_strength: Annotated[float, typer.Option(help="Of the commitment.")] = 10.0,
    most: Annotated[float, typer.Option(help="Largest strength of the correction.")] = 20.0,
    from_layer: Annotated[
        int | None, typer.Option(help="First layer that is corrected.", show_default="that of --correct")
    ] = None,
    given: DictionaryOptions,
    source: ModelOptions,
    files: Files,
) -> None:
    """Commit to one word at a position, and correct it to another in later layers, harder and harder."""
    given.check()
    files.check()
    committed, correcting = features_of("--commit", commit), features_of("--correct", correct)
    if not committed or not correcting or word is None:
        raise ArgumentError("give --commit and --correct features, and both words: --word Rome Paris")
    first = max(layer for layer, _ in correcting) if from_layer is None else from_layer
    if first < max(layer for layer, _ in correcting):
        raise ArgumentError(f"--from-layer {first}: features of later layers cannot write there")
    with source.loaded() as lm:
        words = lm.token_id(word[0]), lm.token_id(word[1])
        dictionaries, labels = given.loaded(lm), given.known_labels()
        found = jmi_sparse.commit_and_correct(
            lm,
            prompt,
            dictionaries,
            position,
            words=words,
            committed=committed,
            correcting=correcting,
            suppressed=features_of("--suppress", suppress),
            commit_strength=commit_strength,
            strengths=np.linspace(0, most, 13).tolist(),
            from_layer=first,
        )
        if files.plot is not None:
            files.draw(_figure(found, word, f"{lm.name}: {prompt!r}"))
        if files.output is not None:
            options = {"position": position, "commit_strength": commit_strength, "from_layer": first}
            written = record(
                "correct",
                model=described(lm),
                dictionaries=given.described(dictionaries),
                prompt=prompt,
                words=word,
                features={"commit": committed, "correct": correcting, "suppress": suppress},
                options=options,
                result=found.to_dict(),
            )
            write_json(files.output, written)
        cli.console.say(
            f"{lm.name}  {prompt!r}, position {position}",
            f"committed with {', '.join(named(f, labels) for f in committed)}, corrected with "
            f"{', '.join(named(f, labels) for f in correcting)} from layer {first} on",
            f"where nothing is written: P({word[0]!r}) {found.plain[0]:.4g}, "
            f"P({word[1]!r}) {found.plain[1]:.4g}",
        )
        _print(lm, found, word)


def _print(lm: "jmi.LanguageModel", found: "Correction", word: tuple[str, str]) -> None:
    shift = found.shift
    rows = [
        (
            f"{strength:g}",
            *(f"{prob:.4g}" for prob in found.probs[i]),
            repr(lm.token_string(int(found.top[i]))),
            *([] if shift is None else [f"{shift[i]:.4g}"]),
        )
        for i, strength in enumerate(found.strengths)
    ]
    columns = ["correction", *(f"P({one!r})" for one in word), "likeliest"]
    cli.console.show_table([*columns, *([] if shift is None else ["looks moved"])], rows)


def _figure(found: "Correction", word: tuple[str, str], title: str) -> "Figure":
    from jmi.plots import new_figure

    figure = new_figure(6.5, 4, title)
    axes = figure.subplots()
    for n, one in enumerate(word):
        axes.plot(found.strengths, found.probs[:, n], marker="o", label=repr(one).replace("$", r"\$"))
    axes.set_xlabel("strength of the correction")
    axes.set_ylabel("probability")
    axes.legend()
    return figure
