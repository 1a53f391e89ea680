"""Sweeps: one experiment in thousands of variants, as few compiled programs that share what they can.

Axis names: models (weights with a leading axis), those of the grid, then what the metric returns.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from jmi.captures.capture import Capture
from jmi.captures.output import Output
from jmi.hooks.resolve import Hooks
from jmi.lm import LanguageModel
from jmi.sweeps.chunks import bytes_of
from jmi.sweeps.models import Models
from jmi.sweeps.results import assembled
from jmi.sweeps.store import Store
from jmi.sweeps.work import prepare, run_chunks


@dataclasses.dataclass(frozen=True)
class Program:
    """One compiled program of a sweep.

    Attributes:
      first: position at which its cells start.
      cells: how many run together, on all devices.
      chunks: how often it runs.
      bytes: memory of a run on one device, beside the weights and the base run.
    """

    first: int
    cells: int
    chunks: int
    bytes: int


@dataclasses.dataclass(frozen=True)
class SweepPlan:
    """What a sweep will do, known before it runs.

    Attributes:
      cells: number of cells.
      programs: what is compiled, and how often each runs.
      base_bytes: what stays in memory of the base run.
    """

    cells: int
    programs: tuple[Program, ...]
    base_bytes: int


def sweep(
    lm: LanguageModel | Models,
    prompts: Any,
    hooks: Hooks,
    metric: Callable[[Output], Any],
    *,
    base: Hooks | None = None,
    capture: Sequence[str | Capture] = (),
    logits_at: Any = None,
    share: bool = True,
    memory: int = 2**30,
    mesh: jax.sharding.Mesh | None = None,
    output: str | Path | None = None,
    progress: bool = True,
    exact: bool = False,
) -> Any:
    """Run a model once for each cell of ``hooks`` and return what ``metric`` makes of each run.

    Values of one `jmi.Grid` in ``hooks`` differ between cells; whatever else is in them is the same in each.
    Cells start from one base run at their first edited layer, and at their first edited position where the
    interventions say that they act on each position by itself and those of ``base`` let nothing look ahead
    (`jmi.hooks.reach`); the results are those of a loop over the cells.

    Args:
      lm: a model, or `Models`.
      prompts: as `LanguageModel.prompts` takes them, the same in every cell.
      metric: pure function of a run's `Output` to a pytree of arrays; runs on the device. The arrays of a
        pytree callable, such as ``jax.tree_util.Partial(f, array)``, are data; a plain function is compiled
        once per object: define it once, not in a loop.
      base: hooks of every cell, which the base run has too (the corruption that cells repair). Values of the
        grid may stand in it, such as seeds of a `Noise`: there is then a base run for each of them.
      capture: what the metric reads besides logits.
      logits_at: one position, or one for each row: the metric then gets logits ``[b, vocab]`` and no
        others are computed. Say so when you need one only; the unembedding costs much.
      share: False runs every cell whole.
      memory: bytes that a program may use on a device, beside weights and base run; decides how many
        cells run together.
      mesh: a mesh of one axis, ``jax.make_mesh((n,), ("cells",))``, over which cells are spread;
        nothing is exchanged between its devices. Several processes share the cells by themselves.
      output: a folder to keep finished chunks in. A sweep that was stopped goes on from there, and ends
        with the same bits; one that differs in anything that decides them is refused. A damaged file is
        named in a warning and computed again.
      progress: show a bar, if standard error is a terminal.
      exact: run at the very length of the prompts. Otherwise small sweeps pad them on the left, as
        `LanguageModel.run` does, where that shows in nothing the metric is given (with ``logits_at`` and
        without captures that have positions) or the metric takes padding, as those of `jmi.metrics` do.

    Returns:
      The metric's pytree as numpy arrays ``[*grid.shape, ...]``, or ``[models, *grid.shape, ...]``.

    Raises:
      HookError, InterventionError: a cell whose hooks are wrong, before anything runs.
      ArgumentError: arguments that contradict each other, too little memory; with ``output``, a program that
        calls Python: nobody could tell it from another.
      OutputError: a folder of another sweep, or one that cannot be used; a full disk.

    Example:
      >>> import jmi, jmi_models
      >>> lm = jmi_models.load("atlas")
      >>> grid = jmi.Grid(layer=range(lm.arch.n_layers), head=range(lm.arch.n_heads))
      >>> hooks = {"blocks.*.attn.hook_z": jmi.At(grid["layer"], jmi.Zero(heads=grid["head"]))}
      >>> paris = lm.token_id("Paris")
      >>> logit = lambda out: out.logits[0, paris]
      >>> logits = jmi.sweep(lm, "The capital of France is", hooks, logit, logits_at=-1)
      >>> logits.shape == grid.shape
      True
    """
    work = prepare(
        lm,
        prompts,
        hooks,
        metric,
        base=base,
        capture=capture,
        logits_at=logits_at,
        share=share,
        mesh=mesh,
        exact=exact,
    )
    chunks, programs = work.compiled(memory)
    store = None if output is None else Store(output, work.fingerprint(programs, chunks))
    results: dict[int, list[np.ndarray]] = {}
    with tqdm(total=len(work.cells), unit="cell", disable=None if progress else True) as bar:
        for index, arrays in run_chunks(work, chunks, programs, store):
            results[index] = arrays
            bar.update(chunks[index].count * jax.process_count())
    return assembled(work, chunks, programs, results)


def plan(
    lm: LanguageModel | Models,
    prompts: Any,
    hooks: Hooks,
    metric: Callable[[Output], Any],
    *,
    memory: int = 2**30,
    **options: Any,
) -> SweepPlan:
    """What `sweep` would do with these arguments: compiles its programs and runs nothing.

    Args:
      options: those of `sweep` but ``output`` and ``progress``.
    """
    work = prepare(lm, prompts, hooks, metric, **options)
    chunks, programs = work.compiled(memory)
    summary = []
    for kind, compiled in programs.items():
        mine = [chunk for chunk in chunks if chunk.part == kind]
        summary.append(Program(kind.first, len(mine[0].cells), len(mine), bytes_of(compiled.program)))
    base_bytes = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(work.base_shapes()))
    return SweepPlan(len(work.cells), tuple(summary), base_bytes)
