"""`ctxpipe eval drift`: models asked again, and compared with what was recorded of them; once, or on a schedule."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from pipeline.commands._eval_live import Asks, Shown, live_options, plan_of
from pipeline.commands._eval_running import SUITE

if TYPE_CHECKING:
    from pipeline.evaluation.drift import Drift
    from pipeline.evaluation.models.live import Live

FILE = click.Path(path_type=Path, dir_okay=False)
FOLDER = click.Path(path_type=Path, file_okay=False)


@click.command()
@click.argument("suite", type=SUITE)
@click.option("--only", multiple=True, metavar="WHAT", help="A case's id, a pattern (a/*), a kind, or tag:NAME.")
@click.option("--draws", type=click.IntRange(1, 100), default=1, show_default=True,
              help="Ask everything so many times; a case counts by its mean.")  # fmt: skip
@click.option("--metric", default="score", show_default=True, help="passed, score, or check:NAME.")
@click.option("--margin", "margin_points", type=click.FloatRange(0.1, 100), default=5.0, show_default=True,
              metavar="POINTS", help="A loss up to this, of 100, that chance explains is none.")  # fmt: skip
@click.option("--live-times", is_flag=True,
              help="Answers take as long as they do now; else as when they were recorded.")  # fmt: skip
@click.option("--every", metavar="DURATION", help="Look again and again, such as 6h, until SIGTERM or Ctrl-C.")
@live_options
@click.option("--keep", type=FOLDER, metavar="FOLDER", help="Write what came there, as recordings.")
@click.option("--prometheus", type=FILE, metavar="FILE", help="Write metrics, for the textfile collector.")
@click.option("--metrics-port", type=click.IntRange(0, 65535), help="With --every: serve /metrics; 0: a free port.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a look, each on a line.")
def command(suite: Path, every: str | None, metrics_port: int | None, **options: Any) -> None:
    """Ask the models of SUITE live, and tell whether its cases come out worse than with their recordings.

    Nothing in the suite changes. An endpoint that is away is no drift: a look that loses more than a tenth of the cases
    decides nothing. Equal cases are compared pair by pair, and groups count, not cases.

    Exit code 0: not worse; 1: worse by more than chance; 2: a loss over the margin that may be chance; 3: nothing was
    decided. With --every, 0 when it was stopped; an outage is told, and ends nothing.
    """
    from pipeline.commands._durations import duration_s

    if every is None:
        if metrics_port is not None:
            raise click.UsageError("--metrics-port goes with --every; --prometheus writes a file")
        raise click.exceptions.Exit(_Looks(suite, options).once().exit_code)
    every_s = duration_s("--every", every)
    if every_s == 0:
        raise click.UsageError("--every 0s never rests; name a time between two looks")
    _keep_looking(_Looks(suite, options), every_s, metrics_port)


def _keep_looking(looks: _Looks, every_s: int, metrics_port: int | None) -> None:
    from pipeline.core import metrics
    from pipeline.core.errors import CtxpipeError

    signal.signal(signal.SIGTERM, _interrupt)
    if metrics_port is not None:
        click.echo(f"metrics at http://127.0.0.1:{metrics.serve(metrics_port)}/metrics", err=True)
    try:
        while True:
            began_s = time.monotonic()
            try:
                looks.once()
            except CtxpipeError as error:
                looks.undecided(error)
            time.sleep(max(0.0, every_s - (time.monotonic() - began_s)))
    except KeyboardInterrupt:
        click.echo("stopped", err=True)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


class _Looks:
    """One after the other; the suite is read anew for each, and money is agreed to once."""

    def __init__(self, folder: Path, options: dict[str, Any]) -> None:
        self._folder, self._options, self._agreed = folder, options, bool(options["yes"])
        self._name = folder.resolve().name

    def once(self) -> Drift:
        """Looks and tells. Raises CtxpipeError where nothing could be looked at."""
        from pipeline.evaluation.drift import look, past_of
        from pipeline.evaluation.models.gathering import asking_cases
        from pipeline.evaluation.models.live import Live
        from pipeline.evaluation.suite import read_suite

        options = self._options
        suite = read_suite(self._folder)
        self._name = suite.name
        past = past_of(suite, asking_cases(suite, options["only"]))
        with Shown(options["as_json"]) as shown:
            plan = plan_of(suite, {**options, "draws": 1})
            lives = [Live(plan, shown.made) for _ in range(options["draws"])]
            asks = Asks(lives[0], options["ask_above"], self._agreed, shown, times=len(lives))
            found = look(
                suite,
                past,
                lives,
                metric=options["metric"],
                margin_points=options["margin_points"],
                allowed=asks,
                running=shown.cases,
                live_times=options["live_times"],
            )
        self._agreed = asks.agreed
        self._keep(lives)
        self._tell(found, plan.prices.currency)
        return found

    def undecided(self, error: Exception) -> None:
        """Tells of a look that could not begin."""
        from pipeline.evaluation.drift import Drift

        options = self._options
        nothing = Drift(
            suite=self._name,
            verdict="undecided",
            why=str(error),
            metric=options["metric"],
            margin_points=options["margin_points"],
            cases=0,
        )
        self._tell(nothing, "")

    def _tell(self, found: Drift, currency: str) -> None:
        from datetime import UTC, datetime

        from pipeline.commands._eval_drift_show import as_object, prometheus_text, show, tell_prometheus
        from pipeline.commands._eval_running import write_whole
        from pipeline.core.clock import SystemClock

        now_s = SystemClock().now_us() / 1_000_000
        options = self._options
        show(found, currency, err=options["as_json"])
        if options["as_json"]:
            at = datetime.fromtimestamp(now_s, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
            click.echo(json.dumps(as_object(found, at)))
        tell_prometheus(found, now_s)
        if options["prometheus"] is not None:
            write_whole(options["prometheus"], prometheus_text())

    def _keep(self, lives: list[Live]) -> None:
        from pipeline.evaluation.models.recordings import write_recordings

        if self._options["keep"] is not None:
            for number, live in enumerate(lives):
                write_recordings(self._options["keep"] / f"draw-{number}", live.recordings())
