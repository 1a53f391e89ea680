"""``jmi patch``: copy activations of one prompt's run into another's and map what that does."""

from typing import TYPE_CHECKING, Annotated

import typer

import jmi
from jmi import cli
from jmi.artefacts import write_json
from jmi.cli import prompts as asked
from jmi.cli.options import Files, record
from jmi.errors import ArgumentError
from jmi_models.commands.model import ModelOptions

if TYPE_CHECKING:
    import numpy as np

    from jmi.align import Alignment


def command(
    clean: asked.Clean = None,
    corrupted: asked.Corrupted = None,
    *,
    site: Annotated[
        str, typer.Option(help="Point to patch: hook_resid_pre, attn.hook_z, ...")
    ] = "attn.hook_z",
    over: Annotated[
        list[str] | None,
        typer.Option(
            help="Axis to map: layer, position, head or unit (repeatable).",
            show_default="layer and head, or layer and position",
        ),
    ] = None,
    metric: Annotated[
        asked.Metric, typer.Option(help="What is followed at the last token.")
    ] = asked.Metric.LOGIT_DIFF,
    answer: asked.Answer = None,
    wrong: asked.Wrong = None,
    into: asked.Changed = asked.Into.CORRUPTED,
    window: Annotated[int, typer.Option(min=1, help="Patch so many layers at once.")] = 1,
    top: Annotated[int, typer.Option(min=1, help="How many of the largest effects to list.")] = 10,
    source: ModelOptions,
    files: Files,
) -> None:
    """Patch one prompt's activations into another's run.

    One place after the other is patched between CLEAN and CORRUPTED, and the effects are mapped. Recovery is
    the share of the difference between the two runs that the patch makes up for: 0 nothing happened, 1 as
    in the run the activations come from. By default, who receives the book: which heads' outputs, taken
    from CLEAN, turn the answer on CORRUPTED around.
    """
    from jmi.interp.patching.places import places_of
    from jmi.model.inputs import as_prompts

    files.check()
    if over is not None and len(over) != 2 and files.plot is not None:
        raise ArgumentError(f"--plot draws a map of two axes, not of {', '.join(over)}: use --over twice")
    texts = cli.pair.texts_of(clean, corrupted)
    with source.loaded() as lm:
        point = cli.effects.point_of(lm, site)
        axes = over or cli.effects.axes_of(point)
        tokens = cli.pair.tokens_of(lm, texts)
        aligned = tokens[0].shape == tokens[1].shape
        at = {} if aligned else {"position": _positions(*tokens)}
        # Its errors, before anything is run.
        places_of(lm.arch, point, as_prompts(tokens[0]), axes, {}, window=window)
        pair = cli.pair.pair_of(lm, texts, tokens, into=into, answer=answer, wrong=wrong)
        values, goal = pair.values(metric), pair.metric(metric)
        result = jmi.interp.patch(
            lm, *tokens, site, metric=goal, into=into.value, over=axes, at=at, window=window
        )
    recovery, patched = result.recovery[..., 0], result.patched[..., 0]

    if files.plot is not None:
        title = f"{site}: into the {into.value} run"
        files.draw(cli.effects.figure_of(result.axes, recovery, pair, title, f"recovery of {metric.value}"))
    if files.output is not None:
        options = {"site": site, "over": axes, "window": window, "metric": metric}
        found = {"axes": dict(result.axes), "patched": patched, "recovery": recovery}
        write_json(files.output, record("patch", **pair.record(values), options=options, **found))
    cli.effects.print_pair(pair, site, metric.value, values)
    cli.effects.print_effects(result.axes, recovery, {metric.value: patched}, top, "recovery")
    if not aligned:
        cli.console.say("the prompts differ in length: only positions that correspond were patched")


def _positions(clean: "np.ndarray", corrupted: "np.ndarray") -> "Alignment":
    """Corresponding positions; ArgumentError when all precede the first token that differs."""
    from jmi.align import align_tokens

    found = align_tokens(clean, corrupted)
    same = len(found.clean) and found.clean[-1] == len(found.clean) - 1 == found.corrupted[-1]
    if same or not len(found.clean):
        raise ArgumentError(
            "the prompts differ in length, and what they have in common comes before the first difference, "
            "where the runs are still the same: give prompts of one length, or with one ending"
        )
    return found
