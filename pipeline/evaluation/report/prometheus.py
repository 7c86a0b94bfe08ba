"""A run as metrics in a file, for the textfile collector of Prometheus' node exporter: results over time."""

from __future__ import annotations

from collections import Counter

from prometheus_client import CollectorRegistry, generate_latest

from pipeline.core import metrics
from pipeline.evaluation.baseline import mean_by_kind
from pipeline.evaluation.report.reported import Reported
from pipeline.ops.space_measures import percentile

GAUGES = (
    metrics.eval_cases,
    metrics.eval_flipped,
    metrics.eval_score,
    metrics.eval_score_blessed,
    metrics.eval_latency,
    metrics.eval_cost,
    metrics.eval_verdict,
    metrics.eval_seconds,
    metrics.eval_ended,
)
SHARE = 0.95


def prometheus(found: Reported, ended_s: float) -> str:
    """The text of the file; `ended_s` in seconds since 1970. A run that decided nothing says that and no scores."""
    one = found.judgement
    registry = CollectorRegistry()
    for gauge in GAUGES:
        gauge.clear()
        registry.register(gauge)
    metrics.eval_verdict.labels(one.suite).set(one.exit_code)
    metrics.eval_ended.labels(one.suite).set(ended_s)
    metrics.eval_seconds.labels(one.suite).set(one.seconds)
    if one.exit_code != 3:
        _set_cases(found)
        _set_means(found)
    return generate_latest(registry).decode()


def _set_cases(found: Reported) -> None:
    suite, accepted = found.judgement.suite, set(found.judgement.accepted)
    outcomes = Counter(
        (result.kind, "passed" if result.passed else "accepted" if result.id in accepted else "failed")
        for result in found.results
    )
    for kind in sorted({result.kind for result in found.results}):
        for outcome in ("passed", "failed", "accepted"):
            metrics.eval_cases.labels(suite, kind, outcome).set(outcomes[kind, outcome])
    for (kind_of, state), count in Counter((flip.kind, flip.state) for flip in found.judgement.flips).items():
        metrics.eval_flipped.labels(suite, kind_of, state).set(count)


def _set_means(found: Reported) -> None:
    suite = found.judgement.suite
    for kind, score in mean_by_kind(found.results, "score").items():
        metrics.eval_score.labels(suite, kind).set(score)
        metrics.eval_latency.labels(suite, kind).set(percentile(_latencies(found, kind), SHARE) / 1000)
    for kind, score in found.blessed_scores.items():
        metrics.eval_score_blessed.labels(suite, kind).set(score)
    for kind, cost in mean_by_kind(found.results, "cost").items():
        metrics.eval_cost.labels(suite, kind).set(cost)


def _latencies(found: Reported, kind: str) -> list[float]:
    return [one.measures.get("latency_ms") or 0.0 for one in found.results if one.kind == kind]
