"""``jmi attribute``: estimate from gradients what patching every place, or every edge, would do."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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

    from jmi.cli.pair import Pair


def command(
    clean: asked.Clean = None,
    corrupted: asked.Corrupted = None,
    *,
    site: Annotated[str, typer.Option(help="Point inside the layers: attn.hook_z, ...")] = "attn.hook_z",
    edges: Annotated[
        int | None,
        typer.Option(min=1, help="Score all edges between heads and MLPs; keep so many as a circuit."),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Average gradients over so many inputs (integrated gradients).")
    ] = None,
    metric: Annotated[
        asked.SmoothMetric, typer.Option(help="What is followed at the last token.")
    ] = asked.SmoothMetric.LOGIT_DIFF,
    answer: asked.Answer = None,
    wrong: asked.Wrong = None,
    top: Annotated[int, typer.Option(min=1, help="How many of the largest scores to list.")] = 10,
    circuit: Annotated[
        Path | None, typer.Option(help="With --edges: write scores and circuit as EAP-IG and MIB do.")
    ] = None,
    source: ModelOptions,
    files: Files,
) -> None:
    """Estimate from gradients what patching would do.

    One backward pass estimates what `jmi patch --into clean` measures place by place: a score is the
    share of the difference between CLEAN and CORRUPTED that patching CORRUPTED into CLEAN at this place
    alone would make up for. With --edges N, every edge between two parts of the model is scored (EAP; with
    --steps EAP-IG), and the N strongest are run as a circuit.
    """
    files.check(circuit=circuit)
    if edges is None and circuit is not None:
        raise ArgumentError("--circuit goes with --edges N: a circuit is made of edges")
    if edges is not None and files.plot is not None:
        raise ArgumentError("--plot draws places; with --edges write the circuit to a file: --circuit")
    texts = cli.pair.texts_of(clean, corrupted)
    with source.loaded() as lm:
        _check_wanted(lm, site, edges)
        tokens = cli.pair.tokens_of(lm, texts)
        _check_lengths(*tokens)
        pair = cli.pair.pair_of(lm, texts, tokens, into=asked.Into.CLEAN, answer=answer, wrong=wrong)
        values = pair.values(metric)
        if edges is None:
            axes, scores = _places(pair, site, metric, steps)
        else:
            edge_scores, kept, faithful = _circuit(pair, edges, metric, steps)
    options, difference = {"metric": metric, "steps": steps}, pair.gap(values)

    def write(**found: Any) -> None:
        if files.output is not None:
            write_json(files.output, record("attribute", **pair.record(values), **found))

    if edges is None:
        shares = scores / difference
        if files.plot is not None:
            label = f"estimated share of {metric.value}"
            files.draw(cli.effects.figure_of(axes, shares, pair, f"{site}: attribution", label))
        write(options={**options, "site": site}, axes=axes, scores=scores, shares=shares)
        cli.effects.print_pair(pair, site, metric.value, values)
        cli.effects.print_effects(axes, shares, {"score": scores}, top, "share")
        return
    if circuit is not None:
        jmi.interp.save_circuit(circuit, edge_scores, kept)
    every = [{"edge": name, "score": score} for name, score in edge_scores.top(edge_scores.graph.n_edges)]
    write(options={**options, "edges": edges}, edges=every, kept=edges, faithfulness=faithful)
    cli.effects.print_pair(pair, "edges", metric.value, values)
    _print_edges(edge_scores, difference, top)
    cli.console.say(f"a circuit of the {edges} strongest edges keeps {faithful:.1%} of the difference")


def _check_wanted(lm: "jmi.LanguageModel", site: str, edges: int | None) -> None:
    """Refuse a site outside the layers, and more edges than there are."""
    if edges is None and cli.effects.point_of(lm, site).n_layers is None:
        raise ArgumentError(f"--site {site} stands outside the layers; name a point inside them")
    if edges is not None and edges > (known := jmi.interp.edge_graph(lm).n_edges):
        raise ArgumentError(f"--edges {edges}: this model has {known} edges")


def _check_lengths(clean: "np.ndarray", corrupted: "np.ndarray") -> None:
    """Refuse prompts that differ in length."""
    if clean.shape != corrupted.shape:
        lengths = f"{clean.shape[1]} and {corrupted.shape[1]}"
        raise ArgumentError(
            f"the prompts have {lengths} tokens; gradients need as many in both, jmi patch not"
        )


def _places(
    pair: "Pair", site: str, metric: asked.SmoothMetric, steps: int | None
) -> tuple[dict[str, Any], "np.ndarray"]:
    """Scores over layers and heads, or layers and positions."""
    import numpy as np

    from jmi.model.sites import full_name

    lm = pair.lm
    _, across = cli.effects.axes_of(cli.effects.point_of(lm, site))
    name = full_name(lm.arch, site)
    scores = jmi.interp.attribution_patching(
        lm,
        *pair.tokens,
        name,
        metric=pair.metric(metric),
        into=pair.into.value,
        keep=("batch", "head" if across == "head" else "pos"),
        steps=steps,
        logits_at=-1,
    )
    (label,) = scores.captures
    values = np.asarray(scores.captures[label])[:, 0]
    return {"layer": list(scores.layers(label)), across: list(range(values.shape[1]))}, values


def _circuit(
    pair: "Pair", edges: int, metric: asked.SmoothMetric, steps: int | None
) -> tuple["jmi.interp.EdgeScores", "np.ndarray", float]:
    """Scores of all edges, which of them are the strongest, and the share of the difference these keep."""
    prompts, goal = (pair.lm, *pair.tokens), pair.metric(metric)
    scores = jmi.interp.eap(*prompts, metric=goal, into="clean", steps=steps, logits_at=-1)
    kept = jmi.interp.top_edges(scores, edges)
    compared = jmi.interp.faithfulness(*prompts, kept[None], metric=goal, logits_at=-1)
    return scores, kept, float(compared.values[0])


def _print_edges(scores: "jmi.interp.EdgeScores", difference: float, top: int) -> None:
    rows = [(name, f"{score:+.4f}", f"{score / difference:+.1%}") for name, score in scores.top(top)]
    title = f"strongest of {scores.graph.n_edges} edges"
    cli.console.show_table(("edge", "score", "share"), rows, title=title, left=1)
