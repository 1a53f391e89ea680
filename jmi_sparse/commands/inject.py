"""``jmi inject``: suppress features, inject another, at each position of a prompt."""

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any

import typer

import jmi_sparse
from jmi import cli
from jmi.artefacts import write_json
from jmi.cli.options import Files, described, record
from jmi.errors import ArgumentError, printable
from jmi_models.commands.model import ModelOptions
from jmi_sparse.commands.dictionaries import PROMPT, WORD, DictionaryOptions, features_of, named, pointing_at

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from jmi_sparse.commands.presets import Preset
    from jmi_sparse.steering.planning import PlanningSite


def command(
    prompt: Annotated[str | None, typer.Argument(help="Text to run.", show_default=PROMPT)] = None,
    *,
    inject: Annotated[
        list[str] | None,
        typer.Option(
            help="Feature to add, layer:id (repeatable).", show_default="the one that points most at the word"
        ),
    ] = None,
    suppress: Annotated[
        list[str] | None, typer.Option(help="Feature to subtract, layer:id (repeatable).")
    ] = None,
    word: Annotated[str | None, typer.Option(help="Word to follow, one token.", show_default=WORD)] = None,
    strength: Annotated[list[float], typer.Option(help="Strength (repeatable).")] = [1.0, 10.0],  # noqa: B006
    controls: Annotated[
        int, typer.Option(min=0, help="Write so many random sets of features of the same layers as well.")
    ] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Of the random sets.")] = 0,
    preset: Annotated[
        str | None,
        typer.Option(help="A published experiment, instead of all of the above; 'list' names them."),
    ] = None,
    given: DictionaryOptions,
    source: ModelOptions,
    files: Files,
) -> None:
    """Write features at each position by itself, and follow a word at the end.

    At one position of PROMPT after the other, decoder rows of the features of --suppress are subtracted and
    those of --inject added, in every layer that they write into, whatever the model makes of them.
    """
    if preset is not None:
        chosen = _preset(preset)
        if chosen is None:
            return
        prompt = chosen.prompt if prompt is None else prompt
        word = chosen.word if word is None else word
        suppress = suppress or [f"{layer}:{index}" for layer, index in chosen.suppress]
        inject = inject or [f"{chosen.inject[0]}:{chosen.inject[1]}"]
        given = dataclasses.replace(given, dictionaries=given.dictionaries or [chosen.dictionaries])
        if source.model == ModelOptions.model:
            source = dataclasses.replace(source, model=chosen.model)
    given.check()
    files.check()
    prompt = PROMPT if prompt is None else prompt
    added, taken = features_of("--inject", inject), features_of("--suppress", suppress)
    with source.loaded() as lm:
        followed = lm.token_id(WORD if word is None else word)
        dictionaries, labels = given.loaded(lm), given.known_labels()
        if not added and not taken:
            added = [pointing_at(lm, dictionaries, followed)]
        found = jmi_sparse.planning_site(
            lm,
            prompt,
            dictionaries,
            word=followed,
            injected=added,
            suppressed=taken,
            strengths=strength,
            controls=controls,
            seed=seed,
        )
        tokens = [lm.token_string(token) for token in found.tokens]
        if files.plot is not None:
            files.draw(_figure(found, tokens, f"{lm.name}: P({lm.token_string(followed)!r})"))
        if files.output is not None:
            written = record(
                "inject",
                model=described(lm),
                dictionaries=given.described(dictionaries),
                prompt=prompt,
                tokens=tokens,
                word=lm.token_string(followed),
                preset=preset,
                seed=seed,
                result=found.to_dict(),
            )
            write_json(files.output, written)
        cli.console.say(
            f"{lm.name}  {prompt!r}, {len(tokens)} tokens",
            f"suppressed {', '.join(named(f, labels) for f in taken) or 'nothing'}; "
            f"injected {', '.join(named(f, labels) for f in added) or 'nothing'}",
        )
        _print(found, tokens, lm.token_string(followed))


def _preset(name: str) -> "Preset | None":
    """A published experiment; None where their names are printed instead."""
    from jmi_sparse.commands.presets import PRESETS

    if name == "list":
        rows = [(key, each.model, each.dictionaries, repr(each.word)) for key, each in PRESETS.items()]
        cli.console.show_table(("preset", "model", "dictionaries", "word"), rows, left=4)
        return None
    if name not in PRESETS:
        raise ArgumentError(f"--preset {printable(name)}: there are {', '.join(PRESETS)}")
    return PRESETS[name]


def _print(found: "PlanningSite", tokens: list[str], word: str) -> None:
    position, best = found.best
    rows = []
    for i, token in enumerate(tokens):
        cells: list[Any] = [f"{prob:.4g}" for prob in found.probs[i]]
        if len(found.control_probs):
            cells.append(f"{found.control_probs[:, i].max():.4g}")
        rows.append((str(i), repr(token), *cells))
    columns = [f"at {strength:g}" for strength in found.strengths]
    random = ["random, most"] if len(found.control_probs) else []
    cli.console.show_table(("", "token", *columns, *random), rows, left=2)
    prob = found.probs[position, best]
    cli.console.say(
        f"P({word!r}) {found.baseline[0]:.4g} where nothing is written; at most {prob:.4g} at position "
        f"{position} {tokens[position]!r}, strength {found.strengths[best]:g}: "
        f"{prob / max(found.baseline[0], 1e-30):.4g} times"
    )


def _figure(found: "PlanningSite", tokens: list[str], title: str) -> "Figure":
    from jmi.plots import new_figure, shown

    figure = new_figure(min(14, max(6.5, 0.35 * len(tokens) + 2)), 4, title)
    axes = figure.subplots()
    for n, strength in enumerate(found.strengths):
        axes.plot(found.probs[:, n], marker="o", label=f"strength {strength:g}")
    if len(found.control_probs):
        axes.plot(found.control_probs.max((0, 2)), "k:", label="random features, most")
    axes.axhline(found.baseline[0], color="k", linewidth=0.8, label="nothing written")
    axes.set_xticks(range(len(tokens)), [shown(t) for t in tokens], rotation=60, fontsize=8)
    axes.set_xlabel("position that is written")
    axes.set_ylabel("probability of the word")
    axes.set_yscale("log")
    axes.legend(fontsize=8)
    return figure
