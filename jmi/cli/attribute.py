"""``jmi attribute``: estimate from gradients what patching every place, or every edge, would do."""

from pathlib import Path
from typing import Annotated, Any

import jax.numpy as jnp
import numpy as np
import typer

import jmi_models
from jmi.artefacts import write_json
from jmi.cli import pair as pairs
from jmi.cli.common import PytorchBin, check_files, draw, record
from jmi.cli.console import say, show_table
from jmi.cli.effects import axes_of, figure_of, point_of, print_effects, print_pair
from jmi.errors import ArgumentError
from jmi.interp.attribution.attribution_patching import attribution_patching
from jmi.interp.edges.circuit_files import save_circuit
from jmi.interp.edges.eap import EdgeScores, eap
from jmi.interp.edges.faithfulness import faithfulness
from jmi.interp.edges.graph import edge_graph
from jmi.interp.edges.selection import top_edges
from jmi.model.sites import full_name


def command(
    clean: pairs.Clean = None,
    corrupted: pairs.Corrupted = None,
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
        pairs.SmoothMetric, typer.Option(help="What is followed at the last token.")
    ] = pairs.SmoothMetric.LOGIT_DIFF,
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
    check_files({"--output": output, "--plot": plot, "--circuit": circuit})
    if edges is None and circuit is not None:
        raise ArgumentError("--circuit goes with --edges N: a circuit is made of edges")
    if edges is not None and plot is not None:
        raise ArgumentError("--plot draws places; with --edges write the circuit to a file: --circuit")
    texts = pairs.texts_of(clean, corrupted)
    lm = jmi_models.load(model, dtype=dtype, revision=revision, pytorch_bin=pytorch_bin)
    if edges is None and point_of(lm, site).n_layers is None:
        raise ArgumentError(f"--site {site} stands outside the layers; name a point inside them")
    if edges is not None and edges > (known := edge_graph(lm.arch).n_edges):
        raise ArgumentError(f"--edges {edges}: this model has {known} edges")
    prompts = pairs.prompts_of(lm, texts, pairs.Direction.NOISING)
    if not prompts.aligned:
        lengths = " and ".join(str(tokens.shape[1]) for tokens in prompts.tokens)
        raise ArgumentError(
            f"the prompts have {lengths} tokens; gradients need as many in both, jmi patch not"
        )
    pair = pairs.pair_of(lm, prompts, answer, wrong)
    values = pair.values(metric)
    options = {"metric": metric, "steps": steps}

    def keep_record(**found: Any) -> None:
        ends = {"base_value": values[0], "source_value": values[1]}
        if output is not None:
            write_json(output, record("attribute", lm, **pair.record(), **ends, **found))

    if edges is not None:
        scores = eap(lm.arch, lm.params, *prompts.tokens, pair.metric(metric), steps=steps, logits_at=-1)
        kept = top_edges(scores, edges)
        faithful = _faithful(pair, metric, kept)
        if circuit is not None:
            save_circuit(circuit, scores, kept)
        every = [{"edge": name, "score": score} for name, score in scores.top(scores.graph.n_edges)]
        keep_record(options={**options, "edges": edges}, edges=every, kept=edges, faithfulness=faithful)
        print_pair(pair, "edges", metric.value, values)
        _print_edges(scores, values[1] - values[0], top)
        say(f"a circuit of the {edges} strongest edges keeps {faithful:.1%} of the difference")
        return
    axes, found = _places(pair, site, metric, steps)
    shares = found / (values[1] - values[0])
    if plot is not None:
        label = f"estimated share of {metric.value}"
        draw(plot, figure_of(axes, shares, pair, f"{site}: attribution", label))
    keep_record(options={**options, "site": site}, axes=axes, scores=found, shares=shares)
    print_pair(pair, site, metric.value, values)
    print_effects(axes, shares, {"score": found}, top, "share")


def _places(
    pair: pairs.Pair, site: str, metric: pairs.SmoothMetric, steps: int | None
) -> tuple[dict[str, Any], np.ndarray]:
    """Scores over layers and heads, or layers and positions."""
    lm = pair.lm
    _, across = axes_of(point_of(lm, site))
    base, source = map(jnp.asarray, pair.prompts.tokens)
    keep = ("batch", "head" if across == "head" else "pos")
    name, goal = full_name(lm.arch, site), pair.metric(metric)
    scores = attribution_patching(
        lm.arch, lm.params, base, source, name, goal, keep=keep, steps=steps, logits_at=-1
    )
    (label,) = scores.captures
    values = np.asarray(scores.captures[label])[:, 0]
    return {"layer": list(scores.layers(label)), across: list(range(values.shape[1]))}, values


def _faithful(pair: pairs.Pair, metric: pairs.SmoothMetric, kept: np.ndarray) -> float:
    """Share of the difference that a circuit keeps."""
    lm, goal = pair.lm, pair.metric(metric)
    result = faithfulness(lm.arch, lm.params, *pair.prompts.tokens, goal, kept[None], logits_at=-1)
    return float(result.values[0])


def _print_edges(scores: EdgeScores, difference: float, top: int) -> None:
    rows = [(name, f"{score:+.4f}", f"{score / difference:+.1%}") for name, score in scores.top(top)]
    title = f"strongest of {scores.graph.n_edges} edges"
    show_table(("edge", "score", "share"), rows, title=title, left=1)
