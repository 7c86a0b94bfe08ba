"""What `ctxpipe bench lookup` shows a person: a table per kind of measurement, and the ratios under it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from pipeline.commands._bench_show import show_table

LOAD = ("rate_per_s", "answers_per_s", "looked_up_per_s", "p50_ms", "p99_ms", "p99_9_ms", "refused")


def show(figures: Mapping[str, Any]) -> None:
    """Of whichever kind they are."""
    if "curve" in figures:
        _show_curve(figures["curve"])
    elif "budget_ms" in figures:
        _show_budget(figures)
    else:
        _show_compared(figures)
    updates = figures.get("updates")
    if updates:
        click.echo(f"{updates['per_s']:,} updates a second meanwhile")


def _show_compared(figures: Mapping[str, Any]) -> None:
    rows = [
        [f"{name} at {one['share']:.0%}", *_cells(one, LOAD), f"{one['lateness_ms']['p99']:,}"]
        for name, loads in figures["loads"].items()
        for one in loads
    ]
    show_table(
        ["load", "asked/s", "answers/s", "looked up/s", "p50 ms", "p99 ms", "p99.9 ms", "refused", "late p99 ms"],
        rows,
        err=False,
    )
    inside = [
        [name, *_cells(one, ("per_s", "looked_up_per_s", "p50_ms", "p99_ms"))]
        for name, one in figures["in_process"].items()
    ]
    show_table(["in process", "per s", "looked up/s", "p50 ms", "p99 ms"], inside, err=False)
    for name, value in figures["capacities_per_s"].items():
        click.echo(f"{name + ' capacity':>36}  {value:,.0f}/s")
    for name, value in figures.items():
        if "_vs_" in name or name.startswith("near_hit"):
            click.echo(f"{name:>36}  {'-' if value is None else value}")
    if isinstance(figures["feast"], str):
        click.echo(f"{'feast':>36}  {figures['feast']}")


def _show_budget(figures: Mapping[str, Any]) -> None:
    names = ("rate_per_s", "p50_ms", "p99_ms", "within_budget", "admitted_within_budget", "refused_share")
    rows = [[name, *_cells(figures[name], names)] for name in ("busy", "too_much")]
    show_table(["load", "asked/s", "p50 ms", "p99 ms", "in budget", "of admitted", "refused"], rows, err=False)
    for name, value in figures["frozen"].items():
        click.echo(f"{name:>36}  {value}")


def _show_curve(points: Sequence[Mapping[str, Any]]) -> None:
    rows = []
    for point in points:
        shown = [point[name] for name in ("http", "http_without_near", "direct")]
        times = [cell for one in shown for cell in _cells(one, ("p50_ms", "p99_ms"))]
        rows.append([*_cells(point, ("bundles", "loaded_s", "bundle_bytes", "redis_bytes_per_bundle")), *times])
    titles = [
        "bundles",
        "loaded s",
        "bytes",
        "bytes in all",
        "http p50",
        "p99",
        "no near p50",
        "p99",
        "direct p50",
        "p99",
    ]
    show_table(titles, rows, err=False)


def _cells(figures: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    return [f"{figures[name]:,}" for name in names]
