"""``jmi knockout``: cut attention edges and show what changed."""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

import jmi_models
from jmi import artefacts, memory
from jmi.cli.common import PytorchBin, check_files, draw, record
from jmi.errors import ConfigError, JmiError
from jmi.interp.knockout import KnockoutResult, knockout
from jmi.lm import LanguageModel

_MIB = 2**20


def command(
    model: Annotated[str, typer.Argument(help="Embedded name, folder or Hugging Face id.")] = "atlas",
    prompt: Annotated[str, typer.Option(help="Text to run.")] = "The capital of France is",
    layer: Annotated[
        list[int] | None, typer.Option(help="Layer to cut in (repeatable). [default: the middle one]")
    ] = None,
    query: Annotated[list[int], typer.Option(help="Position that looks (repeatable).")] = [-1],  # noqa: B006
    key: Annotated[list[int], typer.Option(help="Position looked at (repeatable).")] = [0],  # noqa: B006
    head: Annotated[
        list[int] | None, typer.Option(help="Head to cut (repeatable). [default: all heads]")
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="Word to follow, one token. [default: the model's prediction]")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="How many changed tokens to list.")] = 10,
    output: Annotated[Path | None, typer.Option(help="Write the result as JSON.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the result (.png, .pdf or .svg).")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    revision: Annotated[str | None, typer.Option(help="Revision of a hub model.")] = None,
    pytorch_bin: PytorchBin = False,
    all_cached: Annotated[
        bool, typer.Option("--all-cached", help="Run on every supported model in the Hugging Face cache.")
    ] = False,
    show_memory: Annotated[
        bool, typer.Option("--memory", help="Show memory before loading, loaded and after running.")
    ] = False,
) -> None:
    """Cut attention edges in MODEL and compare the next-token prediction with and without.

    By default the edge from the last token to the first, in every head of the middle layer. A recurrent
    MODEL does not write the tokens at --key into its state; leave --query out.
    """
    check_files(output, plot)
    if plot is not None and all_cached:
        raise ConfigError("--plot draws one model; name it instead of --all-cached")
    if all_cached and revision is not None:
        raise ConfigError("--revision names one model's revision; leave it out with --all-cached")
    models = [(m.name, m.revision) for m in jmi_models.list_cached()] if all_cached else [(model, revision)]
    if not models:
        raise ConfigError(
            "no supported model in the Hugging Face cache; name one, or run without --all-cached"
        )
    options = {"layer": layer, "queries": query, "keys": key, "heads": head, "target": target, "top": top}
    records, failed = [], False
    for name, commit in models:
        try:
            lm, result, usage = _one(
                name, prompt, options, plot, dtype=dtype, revision=commit, pytorch_bin=pytorch_bin
            )
            if show_memory:
                _print_memory(usage)
            if output is not None:
                records.append(_record(lm, prompt, result, options, usage if show_memory else None))
            del lm  # before the next one is loaded
        except JmiError as error:
            if not all_cached:
                raise
            failed = True
            print(f"error: {name}: {error}", file=sys.stderr)
    if output is not None and records:
        artefacts.write_json(output, {"results": records} if all_cached else records[0])
    if failed:
        raise typer.Exit(2)


def _one(
    name: str, prompt: str, options: dict[str, Any], plot: Path | None, **loading: Any
) -> tuple[LanguageModel, KnockoutResult, dict[str, memory.Memory]]:
    """Load one model, run, print and draw."""
    usage = {"before loading": memory.measure()}
    lm = jmi_models.load(name, **loading)
    usage["loaded"] = memory.measure()
    result = knockout(lm, prompt, **options)
    usage["after running"] = memory.measure()
    words = [lm.token_string(i) for i in result.top.tokens]
    _print(lm, prompt, result, words)
    if plot is not None:
        from jmi.plots.knockout import plot_knockout

        tokens = [lm.token_string(i) for i in result.tokens]
        draw(plot, lambda: plot_knockout(result, tokens, words, f"{lm.name}: {prompt!r}"))
    return lm, result, usage


def _print(lm: LanguageModel, prompt: str, result: KnockoutResult, words: list[str]) -> None:
    console = Console(highlight=False)
    edges = int(result.cut.any(0).sum())
    heads = int(result.cut.any((1, 2)).sum())
    console.print(f"{lm.name}  {prompt!r}, {len(result.tokens)} tokens", soft_wrap=True, markup=False)
    console.print(
        f"cut {edges} edge{'s' * (edges != 1)} in {heads} of {result.cut.shape[0]} heads, "
        f"layer {', '.join(map(str, result.layers))} of {lm.arch.n_layers}"
    )
    before, after = result.target_probs
    console.print(f"KL(baseline || ablated)  {result.kl:.6g} nats")
    console.print(
        f"target {lm.token_string(result.target)!r}  logit drop {result.target_logit_drop:+.6g}, "
        f"probability {before:.4g} -> {after:.4g}",
        markup=False,
    )
    table = Table()
    for column in ("token", "id", "baseline", "ablated", "change"):
        table.add_column(column, justify="left" if column == "token" else "right")
    for word, token, p, q in zip(words, *result.top, strict=True):
        table.add_row(repr(word).replace("[", r"\["), str(token), f"{p:.4%}", f"{q:.4%}", f"{q - p:+.4%}")
    console.print(table)
    seconds = result.seconds
    console.print(
        f"compile {seconds['compile']:.2f} s, baseline {seconds['baseline'] * 1e3:.2f} ms, "
        f"ablated {seconds['ablated'] * 1e3:.2f} ms"
    )


def _print_memory(usage: dict[str, memory.Memory]) -> None:
    table = Table(title="memory")
    for column in ("", "host MiB", "device MiB"):
        table.add_column(column, justify="left" if column == "" else "right")
    for moment, used in usage.items():
        device = "not told" if used.device is None else f"{used.device / _MIB:.1f}"
        table.add_row(moment, f"{used.host / _MIB:.1f}", device)
    Console().print(table)


def _record(
    lm: LanguageModel,
    prompt: str,
    result: KnockoutResult,
    options: dict[str, Any],
    usage: dict[str, memory.Memory] | None,
) -> dict[str, Any]:
    """The result as self-contained plain data."""
    before, after = result.target_probs
    return record(
        "knockout",
        lm,
        prompt=prompt,
        token_ids=result.tokens,
        tokens=[lm.token_string(i) for i in result.tokens],
        options=options,
        layers=result.layers,
        hooks=artefacts.describe_hooks(result.hooks),
        seed=None,
        kl_divergence=result.kl,
        target={
            "token_id": result.target,
            "token": lm.token_string(result.target),
            "logit_drop": result.target_logit_drop,
            "baseline_prob": before,
            "ablated_prob": after,
        },
        top_changed=[
            {
                "rank": i,
                "token_id": t,
                "token": lm.token_string(t),
                "baseline_prob": p,
                "ablated_prob": q,
                "abs_diff": abs(p - q),
            }
            for i, (t, p, q) in enumerate(zip(*result.top, strict=True))
        ],
        attention_to_cut_edges=result.attention * result.cut,
        seconds=dict(result.seconds),
        memory=usage and {moment: dataclasses.asdict(used) for moment, used in usage.items()},
    )
