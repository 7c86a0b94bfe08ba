"""What `ctxpipe eval drift` says of a look: to a person, to a program, to Prometheus."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from pipeline.commands._eval_live import by_reason

if TYPE_CHECKING:
    from pipeline.evaluation.drift import Drift

SHOWN_MAX = 15
COLOURS = {"steady": "green", "worse": "red", "inconclusive": "yellow", "undecided": "red"}
NAMES = {
    "latency_ms": "virtual ms of a case",
    "cost": "cost of a case",
    "malformed": "malformed outputs",
    "answer_ms": "ms of an answer",
}


def as_object(found: Drift, at: str) -> dict[str, Any]:
    """What `--json` prints, one line a look. `at`: when, in UTC."""
    return {"at": at, **asdict(found), "exit_code": found.exit_code}


def show(found: Drift, currency: str, *, err: bool) -> None:
    """A person's view; on stderr where the other stream is for a program."""

    def say(text: str, **style: Any) -> None:
        click.secho(text, err=err, **style)

    say(f"{found.suite}: {found.verdict}: {found.why}", fg=COLOURS[found.verdict], bold=True)
    for label, moved in (("fell", found.fell), ("rose", found.rose)):
        for one in moved[:SHOWN_MAX]:
            told = f": {one.told}" if one.told and label == "fell" else ""
            say(f"  {label} {one.id}: {one.past:.2f} → {one.now:.2f}{told}")
        if len(moved) > SHOWN_MAX:
            say(f"  … and {len(moved) - SHOWN_MAX} more {label}")
    for other in found.other_models:
        say(f"  {other.endpoint} was {', '.join(other.past)} and says now {', '.join(other.now)}", fg="yellow")
    if found.other_answers is not None:
        say(f"  {found.other_answers:.0%} of the requests were answered in other words")
    for name, (past, now) in found.measures.items():
        say(f"  {NAMES[name]}: {_figure(past)} → {_figure(now)}")
    for line in by_reason(found.lost):
        say(f"  lost {line}")
    unknown = f", and {found.cost_unknown} of unknown cost" if found.cost_unknown else ""
    say(f"  {found.calls} calls, {found.cost:.6f} {currency}{unknown}")


def tell_prometheus(found: Drift, ended_s: float) -> None:
    """Sets the gauges. A look that decided nothing leaves the figures of the one before it."""
    from pipeline.core import metrics

    suite = found.suite
    metrics.eval_drift_verdict.labels(suite).set(found.exit_code)
    metrics.eval_drift_cost.labels(suite).set(found.cost)
    moved: Mapping[str, int] = {"fell": len(found.fell), "rose": len(found.rose), "lost": len(found.lost)}
    for outcome, count in moved.items():
        metrics.eval_drift_moved.labels(suite, outcome).set(count)
    metrics.eval_drift_other_models.labels(suite).set(len(found.other_models))
    if found.other_answers is not None:
        metrics.eval_drift_other_answers.labels(suite).set(found.other_answers)
    if found.verdict != "undecided" and found.difference is not None and found.low is not None:
        metrics.eval_drift_success.labels(suite).set(ended_s)
        metrics.eval_drift_points.labels(suite).set(found.difference)
        metrics.eval_drift_low.labels(suite).set(found.low)


def prometheus_text() -> str:
    """The drift gauges as a file for the textfile collector."""
    from prometheus_client import CollectorRegistry, generate_latest

    from pipeline.core import metrics

    registry = CollectorRegistry()
    for name, gauge in vars(metrics).items():
        if name.startswith("eval_drift_"):
            registry.register(gauge)
    return generate_latest(registry).decode()


def _figure(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.6g}"
