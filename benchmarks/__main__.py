"""``python -m benchmarks [SUITE ...] [--output FILE.json]``; ``--help`` lists the suites."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from benchmarks import (
    attribution,
    dictionaries,
    generation,
    hooks,
    loading,
    peers,
    real,
    recurrent,
    start,
    sweeps,
)
from benchmarks.timing import hardware
from jmi.artefacts import check_writable, write_json

SUITES = {
    "hooks": ("Hook overhead: 12 layers, width 768, 8 x 15 tokens, float32", lambda n: hooks.overhead(n)),
    "dispatch": ("Dispatch: 12 layers, width 32, 8 tokens", lambda n: hooks.dispatch(20 * n)),
    "traces": ("Compiles of a sweep", lambda n: hooks.traces()),
    "forward": ("Forward: GPT-2 small, float32, against peers", lambda n: peers.forward(n)),
    "sweeps": (
        "Patching, against peers",
        lambda n: sweeps.sweeps(max(1, n // 5)),
    ),
    "attribution": (
        "Attribution: GPT-2 small, 8 x 15 tokens, float32",
        lambda n: attribution.attribution(max(1, n // 5)),
    ),
    "generation": ("Greedy decoding: GPT-2 small, float32, against peers", generation.generation),
    "recurrent": ("RWKV-7 0.1B, float32, against the rwkv package", lambda n: recurrent.models(n)),
    "recurrence": ("The recurrences: 12 heads of 64, float32", lambda n: recurrent.recurrence(n)),
    "loading": ("Loading 0.8 GiB of float32", lambda n: loading.loading(max(1, n // 5))),
    "real": (
        "SmolLM2 and Gemma 3 from GGUF files, against transformers",
        lambda n: real.real(max(1, n // 5)),
    ),
    "encoding": (
        "Dictionaries: 1,024 tokens, 768 -> 24,576, k 32, float32, against peers",
        lambda n: dictionaries.encoding(n),
    ),
    "layers": ("Features of all layers: GPT-2 small, 8 x 128", lambda n: dictionaries.layers(n)),
    "injections": (
        "2,000 injections: GPT-2 small, 1 x 15, against TransformerLens",
        lambda n: dictionaries.injections(max(1, n // 5)),
    ),
    "rows": ("Decoder rows of 2 GB on disk", lambda n: dictionaries.rows_on_disk(n)),
    "start": ("Starting, in CPU-seconds of fresh processes", start.start),
}


def main(
    suites: Annotated[
        list[str] | None, typer.Argument(help=f"Of: {', '.join(SUITES)}. Default: all.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds; the best counts.")] = 15,
    output: Annotated[Path | None, typer.Option(help="Write the figures as JSON.")] = None,
) -> None:
    """Measure jmi on this machine and print ratios against a peer in the same run."""
    unknown = set(suites or ()) - set(SUITES)
    if unknown:
        raise typer.BadParameter(f"unknown suite {', '.join(sorted(unknown))}; known: {', '.join(SUITES)}")
    if output is not None:
        check_writable(output)
    machine = hardware()
    console = Console()
    console.print(f"{machine['cpu']}, {machine['cores']} cores, jax {machine['packages']['jax']}")
    results: dict[str, Any] = {}
    for name in suites or SUITES:
        title, run = SUITES[name]
        results[name] = run(repeats)
        console.print(_table(title, results[name]))
    if output is not None:
        write_json(output, {"schema_version": 1, "hardware": machine, "results": results})


def _table(title: str, rows: list[dict[str, Any]]) -> Table:
    table = Table(title=title)
    for column in rows[0]:
        table.add_column(column, justify="left" if column == "case" else "right")
    for row in rows:
        table.add_row(*(f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()))
    return table


if __name__ == "__main__":
    typer.run(main)
