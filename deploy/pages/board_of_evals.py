"""The dashboard for who looks after suites: verdicts, what flipped, and scores, times and costs over the runs."""

from __future__ import annotations

from deploy.pages.expressions import Asking, legend
from deploy.pages.panels import Colour, Dashboard, Panel, Query, Row

VERDICTS: dict[str, tuple[str, Colour]] = {
    "0": ("pass", "green"),
    "1": ("regression", "red"),
    "2": ("inconclusive", "yellow"),
    "3": ("nothing decided", "red"),
}
DRIFTS: dict[str, tuple[str, Colour]] = {**VERDICTS, "0": ("steady", "green"), "1": ("worse", "red")}
HEADING = "metrics"


def evals() -> Dashboard:
    ask = Asking()
    rows = [Row("Verdicts", _verdicts(ask)), Row("Scores", _scores(ask)), Row("Live models", _drift(ask))]
    told = "What the runs of evaluation suites came to, and how scores, times and costs move."
    return Dashboard("ctxpipe-evals", "ctxpipe evaluation", told, rows)


def _verdicts(ask: Asking) -> list[Panel]:
    return [
        Panel("Verdicts", "none", [Query(ask.greatest("ctxpipe_eval_verdict", "suite"), legend("suite"))],
              "Of the last run of each suite.", "state-timeline", heading=HEADING, width=12, names=VERDICTS),
        Panel("Age of the last run", "s",
              [Query(f"time() - {ask.greatest('ctxpipe_eval_ended_seconds', 'suite')}", legend("suite"))],
              "A suite that nobody runs guards nothing.", heading=HEADING, width=12),
        Panel("Cases that are not as blessed", "short",
              [Query(ask.total("ctxpipe_eval_flipped_cases", "suite, kind, outcome"),
                     legend("suite", "kind", "outcome"))],
              "Regressed, failed, missing, improved.", heading=HEADING, width=12),
        Panel("Cases", "short",
              [Query(ask.total("ctxpipe_eval_cases", "suite, outcome"), legend("suite", "outcome"))],
              "Passed, failed, and failing with a person's leave.", heading=HEADING, width=12, stacked=True),
    ]  # fmt: skip


def _scores(ask: Asking) -> list[Panel]:
    by_kind = "suite, kind"
    name = legend("suite", "kind")
    less = f"{ask.greatest('ctxpipe_eval_score', by_kind)} - {ask.greatest('ctxpipe_eval_score_blessed', by_kind)}"
    return [
        Panel("Mean score", "percentunit", [Query(ask.greatest("ctxpipe_eval_score", by_kind), name)],
              "Of all checks of a kind's cases.", heading=HEADING, width=12),
        Panel("Less than blessed", "percentunit", [Query(less, name)],
              "Below zero: lower than when the baseline was last moved.", heading=HEADING, width=12),
        Panel("Virtual time of a case, 95 of 100", "s",
              [Query(ask.greatest("ctxpipe_eval_latency_seconds", by_kind), name)],
              "With recorded delays; a machine's speed is not in it.", heading=HEADING),
        Panel("Cost of a case", "currencyUSD", [Query(ask.greatest("ctxpipe_eval_case_cost", by_kind), name)],
              "Mean, of cases whose cost is known.", heading=HEADING),
        Panel("Time of a run", "s", [Query(ask.greatest("ctxpipe_eval_run_seconds", "suite"), legend("suite"))],
              "Real time.", heading=HEADING),
    ]  # fmt: skip


def _drift(ask: Asking) -> list[Panel]:
    suite = legend("suite")
    age = f"time() - {ask.greatest('ctxpipe_eval_drift_success_timestamp_seconds', 'suite')}"
    return [
        Panel("Drift", "none", [Query(ask.greatest("ctxpipe_eval_drift_verdict", "suite"), suite)],
              "Live models beside their recordings.", "state-timeline", heading=HEADING, width=12, names=DRIFTS),
        Panel("Age of the last look", "s", [Query(age, suite)],
              "Of one that decided something.", heading=HEADING, width=12),
        Panel("Points, live less recorded", "short",
              [Query(ask.greatest("ctxpipe_eval_drift_points", "suite"), suite),
               Query(ask.greatest("ctxpipe_eval_drift_low_points", "suite"), f"{suite}, at least")],
              "Of 100; below zero: the answers got worse.", heading=HEADING, width=12),
        Panel("Cases that moved", "short",
              [Query(ask.greatest("ctxpipe_eval_drift_moved_cases", "suite, outcome"), legend("suite", "outcome"))],
              "Fell, rose, or were lost to an outage.", heading=HEADING, width=12),
        Panel("Answered in other words", "percentunit",
              [Query(ask.greatest("ctxpipe_eval_drift_other_answers_ratio", "suite"), suite)],
              "Of the requests that were recorded.", heading=HEADING),
        Panel("Another model answers", "short",
              [Query(ask.greatest("ctxpipe_eval_drift_other_models", "suite"), suite)],
              "Endpoints that name their model otherwise than when they were recorded.", heading=HEADING),
        Panel("Cost of a look", "currencyUSD", [Query(ask.greatest("ctxpipe_eval_drift_cost", "suite"), suite)],
              "What is known of it.", heading=HEADING),
    ]  # fmt: skip
