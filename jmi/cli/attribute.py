"""``jmi attribute``: estimate from gradients what patching every place, or every edge, would do."""

from pathlib import Path
from typing import Annotated, Any

import jax.numpy as jnp
import numpy as np
import typer
from rich.console import Console
from rich.table import Table

import jmi_models
from jmi.artefacts import check_writable, write_json
from jmi.cli import pair as pairs
from jmi.cli.common import PytorchBin, check_files, draw, record
from jmi.cli.effects import axes_of, figure_of, print_effects, print_pair
from jmi.errors import ConfigError
from jmi.interp.attribution import attribution_patching
from jmi.interp.circuit_files import save_circuit
from jmi.interp.eap import EdgeScores, eap
from jmi.interp.edge_selection import top_edges
from jmi.interp.edges import edge_graph
from jmi.interp.faithfulness import faithfulness
from jmi.metrics import Metric
from jmi.sites import full_name


def command(
    clean: pairs.Clean = pairs.CLEAN,
    corrupted: pairs.Corrupted = pairs.CORRUPTED,
    model: Annotated[str, typer.Option(help="Embedded name, folder or Hugging Face id.")] = "atlas",
    site: Annotated[str, typer.Option(help="Point inside the layers: attn.hook_z, ...")] = "attn.hook_z",
    edges: Annotated[
        int | None,
        typer.Option(min=1, help="Score all edges between heads and MLPs; keep so many as a circuit."),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Average gradients over so many inputs (integrated gradients).")
    ] = None,
    metric: Annotated[
        pairs.Metric, typer.Option(help="What is followed at the last token; logit-diff or prob.")
    ] = pairs.Metric.LOGIT_DIFF,
    answer: pairs.Answer = None,
    wrong: pairs.Wrong = None,
    top: Annotated[int, typer.Option(min=1, help="How many of the largest scores to list.")] = 10,
    output: Annotated[Path | None, typer.Option(help="Write the result as JSON.")] = None,
    circuit: Annotated[
        Path | None, typer.Option(help="With --edges: write scores and circuit as EAP-IG and MIB do.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the map (.png, .pdf or .svg).")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    revision: Annotated[str | None, typer.Option(help="Revision of a hub model.")] = None,
    pytorch_bin: PytorchBin = False,
) -> None:
    """Estimate in one backward pass what `jmi patch --direction noising` measures place by place.

    A score is the estimated share of the difference between CLEAN and CORRUPTED that patching CORRUPTED
    into CLEAN at this place alone would make up for. With --edges N, every edge between two parts of the
    model is scored (EAP; with --steps EAP-IG), and the N strongest are run as a circuit.
    """
    check_files(output, plot)
    if metric in (pairs.Metric.RANK, pairs.Metric.KL):
        raise ConfigError(f"--metric {metric.value} has no gradient to follow here; use logit-diff or prob")
    if edges is None and circuit is not None:
        raise ConfigError("--circuit goes with --edges N: a circuit is made of edges")
    if edges is not None and plot is not None:
        raise ConfigError("--plot draws places; with --edges write the circuit to a file: --circuit")
    if circuit is not None:
        check_writable(circuit)
    lm = jmi_models.load(model, dtype=dtype, revision=revision, pytorch_bin=pytorch_bin)
    if edges is not None and edges > (known := edge_graph(lm.arch).n_edges):
        raise ConfigError(f"--edges {edges}: this model has {known} edges")
    pair = pairs.pair_of(lm, clean, corrupted, answer, wrong, pairs.Direction.NOISING)
    if not pair.aligned:
        lengths = " and ".join(str(tokens.shape[1]) for tokens in pair.tokens)
        raise ConfigError(f"the prompts have {lengths} tokens; gradients need as many in both, jmi patch not")
    goal = pair.metric(metric)
    base, source = (float(goal(run)[0]) for run in pair.runs)
    print_pair(pair, site if edges is None else "edges", metric.value, base, source)
    options: dict[str, Any] = {"metric": metric, "steps": steps}
    values = {"base_value": base, "source_value": source}
    if edges is None:
        axes, scores = _places(pair, site, goal, steps)
        shares = scores / (source - base)
        print_effects(axes, shares, {"score": scores}, top, "share")
        title = f"{site}: attribution"
        draw(plot, lambda: figure_of(axes, shares, pair, title, f"estimated share of {metric.value}"))
        found: dict[str, Any] = {"axes": axes, "scores": scores, "shares": shares}
        options["site"] = site
    else:
        found = _edges(pair, goal, steps, edges, top, source - base, circuit)
        options["edges"] = edges
    if output is not None:
        write_json(output, record("attribute", lm, **pair.record(), options=options, **values, **found))


def _places(
    pair: pairs.Pair, site: str, goal: Metric, steps: int | None
) -> tuple[dict[str, Any], np.ndarray]:
    """Scores over layers and heads, or layers and positions."""
    lm = pair.lm
    name = full_name(lm.arch, site)
    if not name.startswith("blocks."):
        raise ConfigError(f"--site {site} stands outside the layers; name a point inside them")
    _, across = axes_of(lm, site)
    keep = ("batch", "head" if across == "head" else "pos")
    base, source = map(jnp.asarray, pair.tokens)
    scores = attribution_patching(
        lm.arch, lm.params, base, source, name, goal, keep=keep, steps=steps, logits_at=-1
    )
    (label,) = scores.captures
    values = np.asarray(scores.captures[label])[:, 0]
    return {"layer": list(scores.layers(label)), across: list(range(values.shape[1]))}, values


def _edges(
    pair: pairs.Pair,
    goal: Metric,
    steps: int | None,
    keep: int,
    top: int,
    difference: float,
    circuit: Path | None,
) -> dict[str, Any]:
    """Score every edge, run the strongest as a circuit, print both."""
    lm, console = pair.lm, Console(highlight=False)
    scores: EdgeScores = eap(lm.arch, lm.params, *pair.tokens, goal, steps=steps, logits_at=-1)
    kept = top_edges(scores, keep)
    table = Table(title=f"strongest of {scores.graph.n_edges} edges")
    for column in ("edge", "score", "share"):
        table.add_column(column, justify="left" if column == "edge" else "right")
    for name, score in scores.top(top):
        table.add_row(name, f"{score:+.4f}", f"{score / difference:+.1%}")
    console.print(table)
    result = faithfulness(lm.arch, lm.params, *pair.tokens, goal, kept[None], logits_at=-1)
    faithful = float(result.values[0])
    console.print(f"a circuit of the {keep} strongest edges keeps {faithful:.1%} of the difference")
    if circuit is not None:
        save_circuit(circuit, scores, kept)
    edges = [{"edge": name, "score": score} for name, score in scores.top(scores.graph.n_edges)]
    return {"edges": edges, "kept": keep, "faithfulness": faithful}
