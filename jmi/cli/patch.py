"""``jmi patch``: copy activations of one prompt's run into another's and map what that does."""

from pathlib import Path
from typing import Annotated

import typer

import jmi_models
from jmi.align import align_tokens
from jmi.artefacts import write_json
from jmi.cli import pair as pairs
from jmi.cli.common import PytorchBin, check_files, draw, record
from jmi.cli.effects import axes_of, figure_of, print_effects, print_pair
from jmi.errors import ConfigError
from jmi.interp.patching import patch


def command(
    clean: pairs.Clean = pairs.CLEAN,
    corrupted: pairs.Corrupted = pairs.CORRUPTED,
    model: Annotated[str, typer.Option(help="Embedded name, folder or Hugging Face id.")] = "atlas",
    site: Annotated[
        str, typer.Option(help="Point to patch: hook_resid_pre, attn.hook_z, ...")
    ] = "attn.hook_z",
    over: Annotated[
        list[str] | None,
        typer.Option(
            help="Axis to map: layer, position, head or unit (repeatable). "
            "[default: layer and head, or layer and position]"
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
    check_files(output, plot)
    lm = jmi_models.load(model, dtype=dtype, revision=revision, pytorch_bin=pytorch_bin)
    axes = over or axes_of(lm, site)
    if plot is not None and len(axes) != 2:
        raise ConfigError(f"--plot draws a map of two axes; this one has {', '.join(axes)}: use --over twice")
    pair, name = pairs.pair_of(lm, clean, corrupted, answer, wrong, direction), metric.value
    positions = None if pair.aligned else align_tokens(*pair.tokens)
    goal = {name: pair.metric(metric)}
    result = patch(lm, *pair.tokens, site, goal, over=axes, positions=positions, window=window)
    assert result.source is not None
    recovery, patched = result.recovery[name][..., 0], result.patched[name][..., 0]

    print_pair(pair, site, name, result.base[name][0], result.source[name][0])
    print_effects(result.axes, recovery, {name: patched}, top, "recovery")
    if positions is not None:
        print("the prompts differ in length: only positions that correspond were patched")
    title = f"{site}: {direction.value}"
    draw(plot, lambda: figure_of(result.axes, recovery, pair, title, f"recovery of {name}"))
    if output is not None:
        options = {"site": site, "over": axes, "direction": direction, "window": window, "metric": metric}
        values = {"base_value": result.base[name][0], "source_value": result.source[name][0]}
        axes_of_result = {"axes": dict(result.axes), "patched": patched, "recovery": recovery}
        write_json(output, record("patch", lm, **pair.record(), options=options, **values, **axes_of_result))
