"""``jmi correct``: commit a model to a word, then steer later layers to another."""

from typing import TYPE_CHECKING, Annotated

import typer

import jmi
import jmi_sparse
from jmi import cli
from jmi.artefacts import write_json
from jmi.cli.options import Files, described, record
from jmi.errors import ArgumentError
from jmi_models.commands.model import ModelOptions
from jmi_sparse.commands.dictionaries import PROMPT, WORD, DictionaryOptions, features_of, named, pointing_at

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from jmi_sparse.steering.correcting import Correction

_STEPS = 12
"""From no correction to the strongest one."""


def command(
    prompt: Annotated[str, typer.Argument(help="Text to run.")] = PROMPT,
    *,
    commit: Annotated[
        list[str] | None,
        typer.Option(
            help="Feature to commit with, layer:id (repeatable).",
            show_default="the one that points most at the first word",
        ),
    ] = None,
    correct: Annotated[
        list[str] | None,
        typer.Option(
            help="Feature to correct with (repeatable).",
            show_default="the one that points most at the second word",
        ),
    ] = None,
    suppress: Annotated[
        list[str] | None, typer.Option(help="Feature to subtract with the commitment (repeatable).")
    ] = None,
    word: Annotated[
        tuple[str, str], typer.Option(help="The word committed to, and the one that corrects it.")
    ] = (WORD, " Paris"),
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
    with source.loaded() as lm:
        words = lm.token_id(word[0]), lm.token_id(word[1])
        dictionaries, labels = given.loaded(lm), given.known_labels()
        committed = committed or [pointing_at(lm, dictionaries, words[0])]
        correcting = correcting or [pointing_at(lm, dictionaries, words[1])]
        last = max(layer for layer, _ in correcting)
        first = last if from_layer is None else from_layer
        if first < last:
            raise ArgumentError(f"--from-layer {first}: features of later layers cannot write there")
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
            strengths=[most * i / _STEPS for i in range(_STEPS + 1)],
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
