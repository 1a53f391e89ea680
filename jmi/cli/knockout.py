"""``jmi knockout``: cut attention edges and show what changed."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import jmi_models
from jmi import artefacts
from jmi.cli import failures, memory
from jmi.cli.common import PytorchBin, check_files, draw, record
from jmi.cli.console import say, show_table
from jmi.errors import ArgumentError
from jmi.interp.patching.knockout import KnockoutResult, knockout
from jmi.lm import LanguageModel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MIB = 2**20


def command(
    model: Annotated[str, typer.Argument(help="Embedded name, folder or Hugging Face id.")] = "atlas",
    prompt: Annotated[str, typer.Option(help="Text to run.")] = "The capital of France is",
    layer: Annotated[
        list[int] | None, typer.Option(help="Layer to cut in (repeatable).", show_default="every layer")
    ] = None,
    query: Annotated[list[int], typer.Option(help="Position that looks (repeatable).")] = [-1],  # noqa: B006
    key: Annotated[list[int], typer.Option(help="Position looked at (repeatable).")] = [-2],  # noqa: B006
    head: Annotated[
        list[int] | None, typer.Option(help="Head to cut (repeatable).", show_default="all heads")
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="Word to follow, one token.", show_default="the model's prediction")
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

    By default the last token no longer sees the one before it, in any layer. A recurrent MODEL does not
    write the tokens at --key into its state; leave --query out.
    """
    check_files({"--output": output, "--plot": plot})
    if plot is not None and all_cached:
        raise ArgumentError("--plot draws one model; name it instead of --all-cached")
    if all_cached and revision is not None:
        raise ArgumentError("--revision names one model's revision; leave it out with --all-cached")
    models = [(m.name, m.revision) for m in jmi_models.list_cached()] if all_cached else [(model, revision)]
    if not models:
        raise ArgumentError(
            "no supported model in the Hugging Face cache; name one, or run without --all-cached"
        )
    options = {"layer": layer, "queries": query, "keys": key, "heads": head, "target": target, "top": top}
    records: list[dict[str, Any]] = []
    failed = False
    for name, commit in models:
        try:
            loading = {"dtype": dtype, "revision": commit, "pytorch_bin": pytorch_bin}
            lm, result, usage = _one(name, prompt, options, loading)
            if plot is not None:
                draw(plot, _figure(lm, prompt, result))
            if output is not None:
                records.append(_record(lm, prompt, result, options, usage if show_memory else None))
                artefacts.write_json(output, {"results": records} if all_cached else records[0])
            _print(lm, prompt, result)
            if show_memory:
                _print_memory(usage)
            del lm  # before the next one is loaded
        except Exception as error:
            if not all_cached or isinstance(error, BrokenPipeError):
                raise
            failed = True
            failures.complain(f"{name}: {failures.explained(error)[0]}")
    if failed:
        raise typer.Exit(2)


def _one(
    name: str, prompt: str, options: dict[str, Any], loading: dict[str, Any]
) -> tuple[LanguageModel, KnockoutResult, dict[str, memory.Memory]]:
    """Load one model and run it, with the memory in use at each stage."""
    usage = {"before loading": memory.measure()}
    lm = jmi_models.load(name, **loading)
    usage["loaded"] = memory.measure()
    result = knockout(lm, prompt, **options)
    usage["after running"] = memory.measure()
    return lm, result, usage


def _figure(lm: LanguageModel, prompt: str, result: KnockoutResult) -> "Figure":
    from jmi.plots.knockout import plot_knockout

    tokens, words = ([lm.token_string(i) for i in ids] for ids in (result.tokens, result.top.tokens))
    return plot_knockout(result, tokens, words, f"{lm.name}: {prompt!r}")


def _print(lm: LanguageModel, prompt: str, result: KnockoutResult) -> None:
    edges = int(result.cut.any(0).sum())
    heads = int(result.cut.any((1, 2)).sum())
    before, after = result.target_probs
    say(
        f"{lm.name}  {prompt!r}, {len(result.tokens)} tokens",
        f"cut {edges} edge{'s' * (edges != 1)} in {heads} of {result.cut.shape[0]} heads, "
        f"layer {', '.join(map(str, result.layers))} of {lm.arch.n_layers}",
        f"KL(baseline || ablated)  {result.kl:.6g} nats",
        f"target {lm.token_string(result.target)!r}  logit drop {result.target_logit_drop:+.6g}, "
        f"probability {before:.4g} -> {after:.4g}",
    )
    if not result.changed:
        say("nothing changed: the model predicts the same without what was cut; its likeliest tokens:")
    listed = [*zip(*result.top, strict=True)]
    if result.target not in result.top.tokens:
        listed.append((result.target, before, after))
    rows = [
        (repr(lm.token_string(token)), str(token), f"{p:.4%}", f"{q:.4%}", f"{q - p:+.4%}")
        for token, p, q in listed
    ]
    show_table(("token", "id", "baseline", "ablated", "change"), rows, left=1)
    seconds = result.seconds
    say(
        f"compile {seconds['compile']:.2f} s, baseline {seconds['baseline'] * 1e3:.2f} ms, "
        f"ablated {seconds['ablated'] * 1e3:.2f} ms"
    )


def _print_memory(usage: dict[str, memory.Memory]) -> None:
    rows = [
        (
            moment,
            f"{used.host / _MIB:.1f}",
            "not told" if used.device is None else f"{used.device / _MIB:.1f}",
        )
        for moment, used in usage.items()
    ]
    show_table(("", "host MiB", "device MiB"), rows, title="memory", left=1)


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
        changed=result.changed,
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
