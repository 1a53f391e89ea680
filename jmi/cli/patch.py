"""``jmi patch``: copy activations of one prompt's run into another's and map what that does."""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

import jmi_models
from jmi.align import Alignment, align_tokens
from jmi.artefacts import write_json
from jmi.cli import pair as pairs
from jmi.cli.common import PytorchBin, check_files, draw, record
from jmi.cli.console import say
from jmi.cli.effects import axes_of, figure_of, point_of, print_effects, print_pair
from jmi.errors import ArgumentError
from jmi.interp.patching.measure import Prompts
from jmi.interp.patching.patch import patch
from jmi.interp.patching.places import places_of


def command(
    clean: pairs.Clean = None,
    corrupted: pairs.Corrupted = None,
    model: Annotated[str, typer.Option(help="Embedded name, folder or Hugging Face id.")] = "atlas",
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
        pairs.Metric, typer.Option(help="What is followed at the last token.")
    ] = pairs.Metric.LOGIT_DIFF,
    answer: pairs.Answer = None,
    wrong: pairs.Wrong = None,
    direction: pairs.Towards = pairs.Direction.DENOISING,
    window: Annotated[int, typer.Option(min=1, help="Patch so many layers at once.")] = 1,
    top: Annotated[int, typer.Option(min=1, help="How many of the largest effects to list.")] = 10,
    output: Annotated[Path | None, typer.Option(help="Write the result as JSON.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the map (.png, .pdf or .svg).")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    revision: Annotated[str | None, typer.Option(help="Revision of a hub model.")] = None,
    pytorch_bin: PytorchBin = False,
) -> None:
    """Patch activations between CLEAN and CORRUPTED, one place after the other, and map the effect.

    Recovery is the share of the difference between the two runs that the patch makes up for: 0 nothing
    happened, 1 as in the run the activations come from. By default, who receives the book: which heads'
    outputs, taken from CLEAN, turn the answer on CORRUPTED around.
    """
    check_files({"--output": output, "--plot": plot})
    if over is not None and len(over) != 2 and plot is not None:
        raise ArgumentError(f"--plot draws a map of two axes, not of {', '.join(over)}: use --over twice")
    texts = pairs.texts_of(clean, corrupted)
    lm = jmi_models.load(model, dtype=dtype, revision=revision, pytorch_bin=pytorch_bin)
    point = point_of(lm, site)
    axes = over or axes_of(point)
    prompts = pairs.prompts_of(lm, texts, direction)
    positions = None if prompts.aligned else _positions(*prompts.tokens)
    # Its errors, before anything is run.
    places_of(point, Prompts(prompts.tokens[0]), axes, {}, window, False)
    pair, name = pairs.pair_of(lm, prompts, answer, wrong), metric.value
    values, goal = pair.values(metric), {name: pair.metric(metric)}
    result = patch(lm, *prompts.tokens, site, goal, over=axes, positions=positions, window=window)
    recovery, patched = result.recovery[name][..., 0], result.patched[name][..., 0]

    title = f"{site}: {direction.value}"
    if plot is not None:
        draw(plot, figure_of(result.axes, recovery, pair, title, f"recovery of {name}"))
    if output is not None:
        found = {
            "options": {
                "site": site,
                "over": axes,
                "direction": direction,
                "window": window,
                "metric": metric,
            },
            "base_value": values[0],
            "source_value": values[1],
            "axes": dict(result.axes),
            "patched": patched,
            "recovery": recovery,
        }
        write_json(output, record("patch", lm, **pair.record(), **found))
    print_pair(pair, site, name, values)
    print_effects(result.axes, recovery, {name: patched}, top, "recovery")
    if positions is not None:
        say("the prompts differ in length: only positions that correspond were patched")


def _positions(base: np.ndarray, source: np.ndarray) -> Alignment:
    """Corresponding positions; ArgumentError when all precede the first token that differs."""
    found = align_tokens(base, source)
    same = len(found.base) and found.base[-1] == len(found.base) - 1 == found.source[-1]
    if same or not len(found.base):
        raise ArgumentError(
            "the prompts differ in length, and what they have in common comes before the first difference, "
            "where the runs are still the same: give prompts of one length, or with one ending"
        )
    return found
