"""``jmi compare``: two kinds of dictionaries at one site, such as a CLT and a PLT."""

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any

import typer

import jmi_sparse
from jmi import cli
from jmi.artefacts import write_json
from jmi.cli.options import Files, described, record
from jmi.errors import ArgumentError
from jmi_models.commands.model import ModelOptions
from jmi_sparse.commands.dictionaries import PROMPT, DictionaryOptions, check_written, direction_of, named

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from jmi_sparse.steering.comparing import Arm


def command(
    prompt: Annotated[str, typer.Argument(help="Text to run.")] = PROMPT,
    *,
    against: Annotated[
        list[str] | None, typer.Option(help="The dictionaries compared with --dictionaries (repeatable).")
    ] = None,
    against_hook: Annotated[
        str | None, typer.Option(help="Site that they read, where the files do not say it.")
    ] = None,
    layer: Annotated[
        int | None,
        typer.Option(help="Layer whose output is looked at.", show_default="the last that both have"),
    ] = None,
    word: Annotated[
        str | None, typer.Option(help="Word to follow, one token.", show_default="the prediction")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="How many features of each are suppressed.")] = 5,
    strength: Annotated[float, typer.Option(help="At which they are written.")] = 10.0,
    given: DictionaryOptions,
    source: ModelOptions,
    files: Files,
) -> None:
    """Compare what two kinds of dictionaries make of a word at one layer.

    Of each the features are found whose rows point most at the word; then these are subtracted at each
    position by itself, with and without the first of them added back, and the word is followed at the end. Of
    a cross-layer transcoder features are also ranked by their best row in any layer.
    """
    given.check()
    files.check()
    if not against:
        raise ArgumentError("--against is needed: the dictionaries that --dictionaries are compared with")
    with source.loaded() as lm:
        token = int(lm.run(prompt, logits_at=-1).logits[0].argmax()) if word is None else lm.token_id(word)
        second = dataclasses.replace(given, dictionaries=against, hook=against_hook)
        both = {"first": given.loaded(lm), "second": second.loaded(lm)}
        layer = _common(both) if layer is None else layer
        asked = {"word": token, "direction": direction_of(lm, token), "k": top, "strength": strength}
        arms: dict[str, Arm] = {}
        for name, dictionaries in both.items():
            check_written(lm, dictionaries)
            for every in (False, True) if hasattr(dictionaries, "targets") else (False,):
                arm = jmi_sparse.compare_arm(
                    lm, prompt, dictionaries, layer=layer, every_target=every, **asked
                )
                arms[f"{name}, any layer" if every else name] = arm
        followed, labels = lm.token_string(token), given.known_labels()
        if files.plot is not None:
            files.draw(_figure(arms, f"{lm.name}: P({followed!r})"))
        if files.output is not None:
            written = record(
                "compare",
                model=described(lm),
                prompt=prompt,
                word=followed,
                token_id=token,
                options={"layer": layer, "top": top, "strength": strength},
                dictionaries={"first": list(given.dictionaries or ()), "second": against},
                arms={name: arm.to_dict() for name, arm in arms.items()},
            )
            write_json(files.output, written)
        cli.console.say(f"{lm.name}  {prompt!r}  {followed!r}, layer {layer}")
        cli.console.show_table(_COLUMNS, [_row(name, arm) for name, arm in arms.items()], left=1)
        for name, arm in arms.items():
            features = ", ".join(named(feature, labels) for feature in arm.ranked)
            cli.console.say(f"{name}: {features}")


def _common(both: dict[str, Any]) -> int:
    """The last layer that both write into; ArgumentError where there is none."""
    layers = [
        {target for targets in jmi_sparse.decoders_of(each).targets.values() for target in targets}
        for each in both.values()
    ]
    if not layers[0] & layers[1]:
        raise ArgumentError(f"the two have no layer in common: {sorted(layers[0])} and {sorted(layers[1])}")
    return max(layers[0] & layers[1])


_COLUMNS = ("", "best cosine", "plain", "suppressed, least", "at", "one added back, least", "at", "skip")


def _row(name: str, arm: "Arm") -> tuple[str, ...]:
    cells: list[Any] = [name, f"{arm.cosines[0]:.4f}", f"{arm.suppressed.baseline[0]:.4g}"]
    for sweep in (arm.suppressed, arm.steered):
        cells += [f"{sweep.probs.min():.4g}", str(sweep.probs.argmin())]
    return (*cells, "none" if arm.skip is None else f"{arm.skip:.4g}")


def _figure(arms: dict[str, "Arm"], title: str) -> "Figure":
    from jmi.plots import new_figure

    figure = new_figure(7.5, 4, title)
    axes = figure.subplots()
    for name, arm in arms.items():
        line = axes.plot(arm.suppressed.probs[:, 0], marker="o", label=f"{name}: suppressed")[0]
        color = line.get_color()
        axes.plot(arm.steered.probs[:, 0], "--", marker="x", color=color, label=f"{name}: one added back")
    axes.axhline(arm.suppressed.baseline[0], color="k", linewidth=0.8, label="nothing written")
    axes.set_xlabel("position that is written")
    axes.set_ylabel("probability of the word")
    axes.legend(fontsize=8)
    return figure
