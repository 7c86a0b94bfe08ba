"""What the demo says: to people in sentences, bars and tables; to programs one JSON object as the last line."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.json import JSON
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from deploy.demo.freshness import percentile


class Story:
    """With `as_json`, everything but the last line goes to standard error."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self.console = Console(stderr=as_json, highlight=False)
        self._step = 0

    def step(self, text: str) -> None:
        self._step += 1
        self.console.print(f"\n[bold cyan]{self._step}.[/] [bold]{text}[/]")

    def say(self, text: str) -> None:
        self.console.print(f"   {text}")

    @contextmanager
    def bar(self, text: str, total: int) -> Iterator[Any]:
        """A progress bar on a terminal, a line at the end elsewhere; yields `advance(count)`."""
        columns = (
            TextColumn("   {task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console, disable=not self.console.is_terminal) as progress:
            task = progress.add_task(text, total=total)
            yield lambda count: progress.advance(task, count)
        if not self.console.is_terminal:
            self.say(f"{text}: {total:,}")

    @contextmanager
    def live(self) -> Iterator[Any]:
        """Yields `show(seen, expected, elapsed_s)` for the live part."""
        with Live(console=self.console, refresh_per_second=8, transient=False) as live:

            def show(seen: list[float], expected: int, elapsed_s: float) -> None:
                if self.console.is_terminal:
                    live.update(_freshness_table(seen, expected, elapsed_s))

            yield show

    def bundle(self, title: str, body: dict[str, Any]) -> None:
        if self.console.is_terminal:
            self.console.print(Panel(JSON(json.dumps(body)), title=title, expand=False))
        else:
            self.say(f"{title}: {json.dumps(body)[:300]} …")

    def hits(self, question: str, answer: dict[str, Any], took_ms: float) -> None:
        """A search's planes: a table on a terminal, lines elsewhere."""
        self.say(f'"{question}": {len(answer["hits"])} planes, {answer["mode"]} search, {took_ms:.0f} ms')
        rows = [_hit_row(hit) for hit in answer["hits"]]
        if not self.console.is_terminal:
            for row in rows:
                self.say("  ".join(row))
            return
        table = Table(box=None, pad_edge=False)
        for name in ("plane", "cosine", "model", "built", "seats", "airline", "found by the text"):
            table.add_column(name, justify="right" if name in ("cosine", "seats") else "left", overflow="fold")
        for row in rows:
            table.add_row(*map(Text, row))
        self.console.print(table)

    def summary(self, result: dict[str, Any]) -> None:
        table = Table(title="What happened", show_header=False)
        for name, value in result.items():
            table.add_row(name.replace("_", " "), f"{value:,}" if isinstance(value, int | float) else _text(value))
        self.console.print(table)
        if self.as_json:
            sys.stdout.write(json.dumps(result) + "\n")
            sys.stdout.flush()


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _hit_row(hit: dict[str, Any]) -> tuple[str, ...]:
    """Facts of the bundle that came with the hit, and the text that its vector is of."""
    bundle = hit["answer"]["bundle"]
    model = f"{bundle['manufacturer'].title()} {bundle['model']}"
    airline = ((bundle["farthest"] or {}).get("airline") or {}).get("name") or "-"
    text = " ".join(((hit["passage"] or {}).get("text") or "").split())
    cosine = "-" if hit["cosine"] is None else f"{hit['cosine']:.3f}"
    return hit["key"], cosine, model, str(bundle["year"] or "?"), str(bundle["seats"]), airline, text


def _freshness_table(seen: list[float], expected: int, elapsed_s: float) -> Table:
    table = Table(title="commit in Postgres → readable in Redis")
    for name in ("departures seen", "of", "per second", "p50 ms", "p99 ms", "slowest ms"):
        table.add_column(name, justify="right")
    figures = (percentile(seen, 0.5), percentile(seen, 0.99), max(seen, default=0.0))
    rate = len(seen) / elapsed_s if elapsed_s > 0 else 0.0
    table.add_row(f"{len(seen):,}", f"{expected:,}", f"{rate:.0f}", *(f"{figure:.1f}" for figure in figures))
    return table
