"""`ctxpipe bench search`: recall and latency of the vector index over real embedded texts, while they are updated."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from pipeline.commands._bench_search_texts import SearchedVectors

CURVE = (10_000, 30_000, 100_000, 300_000, 1_000_000)


@click.command()
@click.option("--vectors", default=100_000, show_default=True, type=click.IntRange(100, 10_000_000))
@click.option("--real", type=click.IntRange(100), help="Embed so many texts at most; the others are mixed from them.")
@click.option("--queries", default=1_000, show_default=True, type=click.IntRange(10, 100_000), help="Different ones.")
@click.option("--duration-s", default=60.0, show_default=True, type=click.FloatRange(1))
@click.option("--updates-per-s", default=200.0, show_default=True, type=click.FloatRange(0, 10_000))
@click.option("--curve", is_flag=True, help="10,000 to 1,000,000 vectors, each in a process of its own.")
@click.option("--threads", default=None, type=click.IntRange(1, 256), help="Of embedding; by default all CPUs.")
@click.option(
    "--folder",
    default=Path(".ctxpipe/bench"),
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Keeps the model and the embedded texts.",
)
@click.option("--report", type=click.Path(dir_okay=False, path_type=Path), help="Write the figures to this file too.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object as the last line of standard output.")
def command(
    vectors: int,
    real: int | None,
    queries: int,
    duration_s: float,
    updates_per_s: float,
    curve: bool,
    threads: int | None,
    folder: Path,
    report: Path | None,
    as_json: bool,
) -> None:
    """Nearest ten of so many vectors, on one CPU, while vectors change and the index is kept up.

    Half of the queries are texts like those that are searched, half are short questions. Recall is against comparing
    all vectors, before the updates and after them. Latencies are of searches one after the other; updates, merges and
    builds of the index run beside them on the same CPU.
    """
    from pipeline.commands._bench_search_texts import SearchedVectors, open_embedder

    engine = open_embedder(folder, threads)
    try:
        searched = SearchedVectors(engine, folder, vectors if real is None else min(real, vectors), queries)
    finally:
        engine.close()
    load: dict[str, Any] = {"duration_s": duration_s, "updates_per_s": updates_per_s}
    if curve:
        points = [_in_process(size, searched.real, queries, load, folder) for size in CURVE]
        figures = {**next(point for point in points if point["vectors"] == 100_000), "curve": points}
    else:
        figures = _measure(searched, vectors, load)
    if report is not None:
        report.write_text(json.dumps(figures, indent=2) + "\n")
    if as_json:
        click.echo(json.dumps(figures))
    else:
        _show(figures)


def _measure(searched: SearchedVectors, vectors: int, load: dict[str, Any]) -> dict[str, Any]:
    from pipeline.commands._bench_search_load import measure

    tell: Callable[[str], None] = lambda line: click.echo(line, err=True)  # noqa: E731
    return measure(searched, vectors, load["duration_s"], load["updates_per_s"], tell)


def _in_process(vectors: int, real: int, queries: int, load: dict[str, Any], folder: Path) -> dict[str, Any]:
    """So that one size's memory is not counted with another's."""
    words = ["--vectors", vectors, "--real", real, "--queries", queries, "--folder", folder]
    words += ["--duration-s", load["duration_s"], "--updates-per-s", load["updates_per_s"], "--json"]
    command = [sys.executable, "-m", "pipeline.cli", "bench", "search", *map(str, words)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise click.ClickException(f"measuring {vectors:,} vectors ended with {done.returncode}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _show(figures: dict[str, Any]) -> None:
    from pipeline.commands._bench_show import show_table

    points = figures.get("curve", [figures])
    titles = ["vectors", "real", "recall@10", "p50 ms", "p99 ms", "p99.9 ms", "memory MiB", "mapped MiB"]
    names = ["real_texts", "recall_at_10", "p50_ms", "p99_ms", "p99_9_ms", "memory_mib", "mapped_mib"]
    show_table(titles, [[f"{one['vectors']:,}", *(f"{one[name]:,}" for name in names)] for one in points], err=False)
