"""`ctxpipe eval record`: real models are asked, once, on purpose; what they answer is what every later run sees."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.evaluation.models.gathering import Gathered, Lacking
    from pipeline.evaluation.models.live import Live, LivePlan, Made
    from pipeline.evaluation.models.recordings import Recording, Recordings
    from pipeline.evaluation.suite import Suite

EXIT_HARNESS = 3
SHOWN_MAX = 20


@click.command()
@click.argument("suite", type=click.Path(path_type=Path))
@click.option("--only", multiple=True, metavar="WHAT", help="A case's id, a pattern (a/*), a kind, or tag:NAME.")
@click.option("--missing", is_flag=True, help="Ask only what has no recording yet; without it, all is asked anew.")
@click.option("--prune", is_flag=True, help="Remove recordings that no case asks for any more.")
@click.option("--model-url", "urls", multiple=True, metavar="[NAME=]URL",
              help="Ask there instead: all endpoints, or the one of this name.")  # fmt: skip
@click.option("--draws", type=click.IntRange(1, 100), default=1, show_default=True,
              help="So many answers to each request; equal requests of one case get one after the other.")  # fmt: skip
@click.option("--failures", is_flag=True, help="Record outages too (timeouts, 429, 5xx), instead of refusing them.")
@click.option("--calls-max", type=click.IntRange(1), default=5_000, show_default=True, metavar="N")
@click.option("--at-once", type=click.IntRange(1, 1_000), default=8, show_default=True, metavar="N",
              help="On their way to one endpoint.")  # fmt: skip
@click.option("--ask-above", type=click.IntRange(0), default=20, show_default=True, metavar="N",
              help="Ask before more calls than that.")  # fmt: skip
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, as the last line.")
def command(suite: Path, only: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Ask the models of SUITE/guard.yaml, and keep what they answer in SUITE/recordings, byte for byte.

    A key stands in guard.yaml as ${NAME} and comes from the environment. Outages are not recorded, a request with a
    secret in it is not sent, and secrets in answers become stars. Exit code 3 where a case lacks a recording then.
    """
    from pipeline.evaluation.models.gathering import asking_cases
    from pipeline.evaluation.models.guarding import recordings_of
    from pipeline.evaluation.models.live import Live
    from pipeline.evaluation.suite import read_suite

    read = read_suite(suite)
    before = recordings_of(read)
    with _Shown(as_json) as shown:
        live = Live(_plan(read, options), shown.made)
        try:
            gathered = _gathered(read, live, before, asking_cases(read, only), options, shown)
        except KeyboardInterrupt:
            _save(read, before, live, options["missing"], frozenset())
            click.echo(
                f"interrupted; {len(live.recordings())} recordings are kept, --missing goes on from there", err=True
            )
            raise
    orphans = _orphans(before, gathered, live) if not only and gathered.whole else []
    pruned = frozenset((one.key, one.draw) for one in orphans) if options["prune"] else frozenset()
    files = _save(read, before, live, options["missing"], pruned)
    told = _as_object(read, before, live, gathered, orphans, pruned, files)
    if as_json:
        click.echo(json.dumps(told))
    else:
        _report(told, only)
    if not gathered.whole:
        raise click.exceptions.Exit(EXIT_HARNESS)


def _plan(suite: Suite, options: dict[str, Any]) -> LivePlan:
    from datetime import UTC, datetime

    from pipeline.core.clock import SystemClock
    from pipeline.evaluation.models.gathering import live_endpoints
    from pipeline.evaluation.models.live import LivePlan
    from pipeline.guard.prices import read_prices

    endpoints, secrets = live_endpoints(suite, options["urls"])
    return LivePlan(
        endpoints=endpoints,
        secrets=secrets,
        prices=read_prices(),
        day=datetime.fromtimestamp(SystemClock().now_us() / 1_000_000, UTC).date(),
        draws=options["draws"],
        failures=options["failures"],
        calls_max=options["calls_max"],
        at_once=options["at_once"],
    )


def _gathered(
    suite: Suite, live: Live, before: Recordings, cases: Sequence[Any], options: dict[str, Any], shown: _Shown
) -> Gathered:
    from pipeline.evaluation.models.gathering import gather
    from pipeline.evaluation.models.recordings import Recordings

    kept = before if options["missing"] else Recordings()
    asks = _Asks(live, 0 if options["yes"] else options["ask_above"], options["yes"], shown)
    return gather(suite, live, kept, cases, asks, shown.cases)


class _Asks:
    """Whether to make the calls of a round. Raises UsageError where nobody can be asked."""

    def __init__(self, live: Live, above: int, agreed: bool, shown: _Shown) -> None:
        self._live, self._above, self._agreed, self._shown = live, above, agreed, shown

    def __call__(self, lacking: Lacking) -> bool:
        if not self._agreed and self._live.calls + lacking.calls > self._above:
            told = _told_of(lacking, self._live.plan.prices.currency)
            if self._shown.as_json or not sys.stdin.isatty():
                raise click.UsageError(f"{told}. Answer in a terminal, or say --yes")
            with self._shown.paused():
                self._agreed = click.confirm(f"{told}. Ask them, and whatever follows from the answers?", err=True)
            if not self._agreed:
                return False
        self._shown.asking(lacking.calls)
        return True


def _told_of(lacking: Lacking, currency: str) -> str:
    endpoints = Counter(f"{one.endpoint.name} ({one.endpoint.model})" for one in lacking.wanted)
    cost = "at a cost that is unknown" if lacking.cost_max is None else f"for at most {lacking.cost_max:.4f} {currency}"
    return f"{lacking.calls} calls are to be made, to {', '.join(sorted(endpoints))}, {cost}"


def _save(
    suite: Suite, before: Recordings, live: Live, missing: bool, pruned: frozenset[tuple[str, int]]
) -> list[Path]:
    """Nothing is written where nothing changed."""
    from pipeline.evaluation.models.gathering import merged
    from pipeline.evaluation.models.guarding import recordings_folder
    from pipeline.evaluation.models.recordings import write_recordings

    if not live.made and not pruned:
        return []
    left = [one for one in merged(before, live, missing) if (one.key, one.draw) not in pruned]
    return write_recordings(recordings_folder(suite), left)


def _orphans(before: Recordings, gathered: Gathered, live: Live) -> list[Recording]:
    """Of those that were there before: no case asks for them. Draws beyond those that were asked for are meant."""
    asked = {key for key, _ in gathered.used} | {key for key, _ in live.made}
    return [one for one in before if one.key not in asked]


def _as_object(
    suite: Suite,
    before: Recordings,
    live: Live,
    gathered: Gathered,
    orphans: Sequence[Recording],
    pruned: frozenset[tuple[str, int]],
    files: Sequence[Path],
) -> dict[str, Any]:
    from pipeline.evaluation.models.live import answering_models

    made = live.recordings()
    masked = Counter(name for one in made for name in one.masked)
    return {
        "suite": suite.name,
        "cases": len(gathered.results) + len(gathered.failed),
        "recorded": len(made),
        "replaced": sum(before.has(one.key, one.draw) for one in made),
        "calls": live.calls,
        "rounds": gathered.rounds,
        "cost": float(live.cost),
        "cost_unknown": live.cost_unknown,
        "currency": live.plan.prices.currency,
        "masked": dict(sorted(masked.items())),
        "answered_by": {name: sorted(models) for name, models in answering_models(made).items()},
        "orphans": [
            {"key": one.key, "draw": one.draw, "task": one.task, "endpoint": one.endpoint, "on": one.on}
            for one in orphans
        ],
        "pruned": len(pruned),
        "failed": dict(sorted(gathered.failed.items())),
        "harness": gathered.harness,
        "declined": gathered.declined,
        "files": [str(file.relative_to(suite.folder)) for file in files],
    }


def _report(told: dict[str, Any], only: tuple[str, ...]) -> None:
    cost = f"{told['cost']:.6f} {told['currency']}"
    if told["cost_unknown"]:
        cost += f", and {told['cost_unknown']} of unknown cost"
    replaced = f", {told['replaced']} of them in the place of old ones" if told["replaced"] else ""
    click.echo(f"{told['recorded']} recorded{replaced}; {told['calls']} calls, {cost}")
    for name, models in told["answered_by"].items():
        click.echo(f"{name} says it is {', '.join(models)}")
    for name, times in told["masked"].items():
        click.echo(f"masked with stars: {name}, in {times} answers", err=True)
    for label, failed in (("no recording", told["failed"].items()), ("not run", enumerate(told["harness"]))):
        listed = [f"{case}: {why}" if label == "no recording" else str(why) for case, why in failed]
        for line in listed[:SHOWN_MAX]:
            click.echo(f"{label}: {line}", err=True)
        if len(listed) > SHOWN_MAX:
            click.echo(f"… and {len(listed) - SHOWN_MAX} more", err=True)
    if told["declined"]:
        click.echo("nothing more was asked", err=True)
    elif told["pruned"]:
        click.echo(f"{told['pruned']} recordings that no case asks for were removed")
    elif told["orphans"]:
        click.echo(f"{len(told['orphans'])} recordings are asked for by no case; --prune removes them", err=True)
    elif only:
        click.echo("whether there are recordings that no case asks for shows without --only", err=True)
    if told["recorded"] or told["pruned"]:
        click.echo('next: ctxpipe eval run, and if it is as it should be: ctxpipe eval bless --reason "…"')


class _Shown(AbstractContextManager["_Shown"]):
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

    def __enter__(self) -> _Shown:
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

    def paused(self) -> AbstractContextManager[None]:
        return _Paused(self._progress.stop, self._progress.start)


class _Paused(AbstractContextManager[None]):
    """While a question stands on the screen."""

    def __init__(self, stop: Callable[[], None], start: Callable[[], None]) -> None:
        self._stop, self._start = stop, start

    def __enter__(self) -> None:
        self._stop()

    def __exit__(self, *error: object) -> None:
        self._start()
