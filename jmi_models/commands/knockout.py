"""``jmi knockout``: cut attention edges and show what changed."""

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

import jmi
import jmi_models
from jmi import artefacts, cli
from jmi.cli import failures, memory
from jmi.cli.options import Files, described, record
from jmi.errors import ArgumentError
from jmi_models.commands.model import ModelOptions

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MIB = 2**20


def command(
    prompt: Annotated[str, typer.Argument(help="Text to run.")] = "The capital of France is",
    *,
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
    source: ModelOptions,
    files: Files,
    all_cached: Annotated[
        bool, typer.Option("--all-cached", help="Run on every supported model in the Hugging Face cache.")
    ] = False,
    show_memory: Annotated[
        bool, typer.Option("--memory", help="Show memory before loading, loaded and after running.")
    ] = False,
) -> None:
    """Cut attention edges, and show what changes.

    The next-token prediction on PROMPT is compared with and without the cut. By default the last token no
    longer sees the one before it, in any layer. A recurrent model does not write the tokens at --key into
    its state; leave --query out.
    """
    files.check()
    if files.plot is not None and all_cached:
        raise ArgumentError("--plot draws one model; name it instead of --all-cached")
    options = {"layer": layer, "queries": query, "keys": key, "heads": head, "target": target, "top": top}
    records: list[dict[str, Any]] = []
    failed = False
    for one in _cached(source) if all_cached else [source]:
        try:
            _run(one, prompt, options, files, records if all_cached else None, show_memory)
        except Exception as error:
            if not all_cached or isinstance(error, BrokenPipeError):
                raise
            failed = True
            failures.complain(f"{one.model}: {failures.explained(error)[0]}")
    if failed:
        raise typer.Exit(2)


def _cached(source: ModelOptions) -> Iterator[ModelOptions]:
    """Every model in the Hugging Face cache."""
    if source.revision is not None:
        raise ArgumentError("--revision names one model's revision; leave it out with --all-cached")
    if source.model != ModelOptions.model:
        raise ArgumentError("--model names one model; leave it out with --all-cached")
    found = jmi_models.list_cached()
    if not found:
        raise ArgumentError(
            "no supported model in the Hugging Face cache; name one, or run without --all-cached"
        )
    return (dataclasses.replace(source, model=one.name, revision=one.revision) for one in found)


def _run(
    source: ModelOptions,
    prompt: str,
    options: dict[str, Any],
    files: Files,
    others: list[dict[str, Any]] | None,
    show_memory: bool,
) -> None:
    """One model: loaded, run, drawn, written and shown; ``others`` are the records written with its own."""
    usage = {"before loading": memory.measure()}
    with source.loaded() as lm:
        usage["loaded"] = memory.measure()
        result = jmi.interp.knockout(lm, prompt, **options)
        usage["after running"] = memory.measure()
        if files.plot is not None:
            files.draw(_figure(lm, prompt, result))
        if files.output is not None:
            written = _record(lm, prompt, result, options, usage if show_memory else None)
            if others is not None:
                others.append(written)
            artefacts.write_json(
                files.output, written if others is None else record("knockout", results=others)
            )
        _print(lm, prompt, result)
    if show_memory:
        _print_memory(usage)


def _figure(lm: "jmi.LanguageModel", prompt: str, result: "jmi.interp.KnockoutResult") -> "Figure":
    from jmi.plots.knockout import plot_knockout

    tokens, words = ([lm.token_string(i) for i in ids] for ids in (result.tokens, result.top.tokens))
    return plot_knockout(result, tokens, words, f"{lm.name}: {prompt!r}")


def _print(lm: "jmi.LanguageModel", prompt: str, result: "jmi.interp.KnockoutResult") -> None:
    edges = int(result.cut.any(0).sum())
    heads = int(result.cut.any((1, 2)).sum())
    before, after = result.target_probs
    cli.console.say(
        f"{lm.name}  {prompt!r}, {len(result.tokens)} tokens",
        f"cut {edges} edge{'s' * (edges != 1)} in {heads} of {result.cut.shape[0]} heads, "
        f"layer {', '.join(map(str, result.layers))} of {lm.arch.n_layers}",
        f"KL(baseline || ablated)  {result.kl:.6g} nats",
        f"target {lm.token_string(result.target)!r}  logit drop {result.target_logit_drop:+.6g}, "
        f"probability {before:.4g} -> {after:.4g}",
    )
    if not result.changed:
        cli.console.say(
            "nothing changed: the model predicts the same without what was cut; its likeliest tokens:"
        )
    listed = [*zip(*result.top, strict=True)]
    if result.target not in result.top.tokens:
        listed.append((result.target, before, after))
    rows = [
        (repr(lm.token_string(token)), str(token), f"{p:.4%}", f"{q:.4%}", f"{q - p:+.4%}")
        for token, p, q in listed
    ]
    cli.console.show_table(("token", "id", "baseline", "ablated", "change"), rows, left=1)
    seconds = result.seconds
    cli.console.say(
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
    cli.console.show_table(("", "host MiB", "device MiB"), rows, title="memory", left=1)


def _record(
    lm: "jmi.LanguageModel",
    prompt: str,
    result: "jmi.interp.KnockoutResult",
    options: dict[str, Any],
    usage: dict[str, memory.Memory] | None,
) -> dict[str, Any]:
    """The result as self-contained plain data."""
    before, after = result.target_probs
    return record(
        "knockout",
        model=described(lm),
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
