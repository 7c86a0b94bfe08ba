"""What `ctxpipe eval record` and `drift` share: their options, the question before money is spent, and progress."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from pipeline.evaluation.models.gathering import Lacking
    from pipeline.evaluation.models.live import Live, LivePlan, Made
    from pipeline.evaluation.suite import Suite

REASONS_MAX = 15


def live_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Options of commands that ask models."""
    for option in reversed(
        (
            click.option("--model-url", "urls", multiple=True, metavar="[NAME=]URL",
                         help="Ask there instead: all endpoints, or the one of this name."),
            click.option("--not-secret", multiple=True, metavar="TEXT",
                         help="What has this text in it only looks like a secret."),
            click.option("--calls-max", type=click.IntRange(1), default=5_000, show_default=True, metavar="N"),
            click.option("--at-once", type=click.IntRange(1, 1_000), default=8, show_default=True, metavar="N",
                         help="On their way to one endpoint."),
            click.option("--ask-above", type=click.IntRange(0), default=20, show_default=True, metavar="N",
                         help="Ask before more calls than that."),
            click.option("--yes", is_flag=True, help="Do not ask."),
        )
    ):  # fmt: skip
        function = option(function)
    return function


def plan_of(suite: Suite, options: dict[str, Any]) -> LivePlan:
    """Raises ConfigError with all mistakes of endpoints and addresses."""
    from datetime import UTC, datetime

    from pipeline.core.clock import SystemClock
    from pipeline.evaluation.models.gathering import live_endpoints
    from pipeline.evaluation.models.live import LivePlan
    from pipeline.guard.prices import read_prices

    endpoints, secrets = live_endpoints(suite, options["urls"], none=options["not_secret"])
    return LivePlan(
        endpoints=endpoints,
        secrets=secrets,
        prices=read_prices(),
        day=datetime.fromtimestamp(SystemClock().now_us() / 1_000_000, UTC).date(),
        draws=options.get("draws", 1),
        failures=options.get("failures", False),
        calls_max=options["calls_max"],
        at_once=options["at_once"],
    )


class Asks:
    """Whether to make the calls of a round. Raises UsageError where nobody can be asked."""

    def __init__(self, live: Live, above: int, agreed: bool, shown: Shown, times: int = 1) -> None:
        """`times`: all of it is asked so often."""
        self._live, self._above, self.agreed, self._shown, self._times = live, above, agreed, shown, times

    def __call__(self, lacking: Lacking) -> bool:
        if not self.agreed and self._live.calls + self._times * lacking.calls > self._above:
            told = _told_of(lacking, self._times, self._live.plan.prices.currency)
            if self._shown.as_json or not sys.stdin.isatty():
                raise click.UsageError(f"{told}. Answer in a terminal, or say --yes")
            with self._shown.paused():
                self.agreed = click.confirm(f"{told}. Ask them, and whatever follows from the answers?", err=True)
            if not self.agreed:
                return False
        self._shown.asking(lacking.calls)
        return True


def _told_of(lacking: Lacking, times: int, currency: str) -> str:
    endpoints = Counter(f"{one.endpoint.name} ({one.endpoint.model})" for one in lacking.wanted)
    most = lacking.cost_max
    cost = "at a cost that is unknown" if most is None else f"for at most {times * most:.4f} {currency}"
    return f"{times * lacking.calls} calls are to be made, to {', '.join(sorted(endpoints))}, {cost}"


def by_reason(cases: Mapping[str, str]) -> list[str]:
    """A line for each reason, with the first of its cases."""
    named: dict[str, list[str]] = {}
    for case, why in cases.items():
        named.setdefault(why, []).append(case)
    lines = [f"{_some(sorted(listed))}: {why}" for why, listed in named.items()]
    more = len(lines) - REASONS_MAX
    return [*lines[:REASONS_MAX], *([f"… and for {more} more reasons"] if more > 0 else [])]


def _some(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


class Shown(AbstractContextManager["Shown"]):
    """Progress on stderr, where a person looks."""

    def __init__(self, as_json: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self.as_json = as_json
        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[cost]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._cases = self._progress.add_task("cases", total=None, cost="")
        self._calls = self._progress.add_task("calls", total=0, cost="")
        self._cost, self._unknown = 0.0, 0

    def __enter__(self) -> Shown:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def cases(self, done: int, of: int) -> None:
        self._progress.update(self._cases, completed=done, total=of)

    def asking(self, calls: int) -> None:
        task = self._progress.tasks[self._calls]
        self._progress.update(self._calls, total=(task.total or 0) + calls)

    def made(self, one: Made) -> None:
        if one.cost is None:
            self._unknown += 1
        else:
            self._cost += float(one.cost)
        unknown = f" + {self._unknown} unknown" if self._unknown else ""
        self._progress.update(self._calls, advance=1, cost=f"{self._cost:.4f}{unknown}")

    @contextmanager
    def paused(self) -> Iterator[None]:
        """While a question stands on the screen."""
        self._progress.stop()
        try:
            yield
        finally:
            self._progress.start()
