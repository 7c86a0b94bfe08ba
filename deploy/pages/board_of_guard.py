"""The dashboard for who looks at calls to models: which rung answers, what endpoints do, what it costs."""

from __future__ import annotations

from deploy.pages.expressions import Asking, legend
from deploy.pages.panels import Colour, Dashboard, Panel, Query, Row

STATES: dict[str, tuple[str, Colour]] = {
    "0": ("closed", "green"),
    "1": ("half open", "yellow"),
    "2": ("open", "red"),
}
HEADING, PEOPLE = "metrics", "questions-wait-for-people"


def guard() -> Dashboard:
    ask = Asking()
    rows = [
        Row("Answers", _answers(ask)),
        Row("Endpoints", _endpoints(ask)),
        Row("Outputs and cost", _outputs(ask)),
        Row("Questions for people", _people(ask)),
        Row("Swaps of models", _swaps(ask)),
    ]
    told = "Who answers calls to models, why it is not the primary, what endpoints do, and what it costs."
    return Dashboard("ctxpipe-guard", "ctxpipe guard", told, rows)


def _answers(ask: Asking) -> list[Panel]:
    answers = "ctxpipe_guard_answers_total"
    return [
        Panel("Answers by rung", "reqps", [Query(ask.rate(answers, "rung"), legend("rung"))],
              "Who answered: the primary, or what is below it.", heading=HEADING, stacked=True),
        Panel("Not by the primary, and why", "reqps",
              [Query(ask.rate(answers, "task, reason", 'rung!="primary"'), legend("task", "reason"))],
              "What kept the primary from answering.", heading=HEADING),
        Panel("Time of a call, 99 of 100", "s",
              [Query(ask.quantile(0.99, "ctxpipe_guard_seconds", "task"), legend("task")),
               Query(ask.quantile(0.5, "ctxpipe_guard_seconds", "task"), f"{legend('task')} half")],
              "All attempts together.", heading=HEADING),
        Panel("Late", "reqps", [Query(ask.rate("ctxpipe_guard_late_total", "task"), legend("task"))],
              "Calls that ended after their deadline: there should be none.", heading=HEADING, width=12),
        Panel("Put to people", "reqps",
              [Query(ask.rate("ctxpipe_guard_escalations_total", "task, outcome"), legend("task", "outcome"))],
              "Questions that nothing could answer; failed ones are lost.", heading=HEADING, width=12),
    ]  # fmt: skip


def _endpoints(ask: Asking) -> list[Panel]:
    name = legend("endpoint")
    return [
        Panel("Breakers", "none",
              [Query(ask.greatest("ctxpipe_guard_breaker_state", "endpoint, part"), legend("endpoint", "part"))],
              "Of endpoints, and of their outputs for one schema.", "state-timeline", heading=HEADING, width=12,
              names=STATES),
        Panel("Breakers opened", "short",
              [Query(f"sum by (endpoint, part) (increase({ask.of('ctxpipe_guard_breaker_opened_total')}[15m]))",
                     legend("endpoint", "part"))],
              "Within 15 minutes.", heading=HEADING, width=12),
        Panel("Attempts", "reqps",
              [Query(ask.rate("ctxpipe_guard_attempts_total", "endpoint, reason"), legend("endpoint", "reason"))],
              "Asked or passed over, and how it ended.", heading=HEADING),
        Panel("Time of an attempt, 99 of 100", "s",
              [Query(ask.quantile(0.99, "ctxpipe_guard_attempt_seconds", "endpoint"), name)],
              "Those that failed included.", heading=HEADING),
        Panel("On their way", "short", [Query(ask.total("ctxpipe_guard_in_flight_attempts", "endpoint"), name)],
              "Attempts that have not ended.", heading=HEADING),
    ]  # fmt: skip


def _outputs(ask: Asking) -> list[Panel]:
    cost = ask.rate("ctxpipe_guard_cost_total", "task")
    calls = ask.rate("ctxpipe_guard_answers_total", "task")
    return [
        Panel("Invalid outputs", "reqps",
              [Query(ask.rate("ctxpipe_guard_output_invalid_total", "endpoint, kind"), legend("endpoint", "kind")),
               Query(ask.rate("ctxpipe_guard_repaired_total", "kind"), f"mended {legend('kind')}")],
              "What was wrong, and how many could be mended.", heading=HEADING),
        Panel("Tokens", "cps",
              [Query(ask.rate("ctxpipe_guard_tokens_total", "endpoint, kind"), legend("endpoint", "kind"))],
              "As endpoints count them.", heading=HEADING),
        Panel("Cost of a call", "currencyUSD", [Query(f"{cost} / ({calls} > 0)", legend("task"))],
              "As far as prices are known.", heading=HEADING),
        Panel("Cost unknown", "reqps",
              [Query(ask.rate("ctxpipe_guard_cost_unknown_total", "endpoint"), legend("endpoint"))],
              "Attempts without a price, or that were broken off: what is shown as cost is too little by these.",
              heading=HEADING),
    ]  # fmt: skip


def _people(ask: Asking) -> list[Panel]:
    return [
        Panel("Waiting", "short", [Query(ask.greatest("ctxpipe_guard_escalations_waiting", "task"), legend("task"))],
              "Questions that nobody answered yet, as the collector finds them.", heading=PEOPLE),
        Panel("Oldest", "s",
              [Query(ask.greatest("ctxpipe_guard_escalations_oldest_age_seconds", "task"), legend("task"))],
              "How long the oldest of them waits.", heading=PEOPLE),
        Panel("Posts to the webhook", "reqps",
              [Query(ask.rate("ctxpipe_guard_webhooks_total", "outcome"), legend("outcome"))],
              "Failed ones are tried again, refused ones a few times.", heading=PEOPLE),
        Panel("Lost", "reqps", [Query(ask.rate("ctxpipe_guard_escalations_lost_total", "task"), legend("task"))],
              "Questions that could not be stored: nobody will see them.", heading="questions-for-people-are-lost"),
    ]  # fmt: skip


def _swaps(ask: Asking) -> list[Panel]:
    return [
        Panel("Asked first", "none",
              [Query(ask.greatest("ctxpipe_guard_routing_info", "task, endpoint"), legend("task", "endpoint"))],
              "1 for the endpoint that is asked first, by the routing file.", "state-timeline", heading=HEADING,
              width=12, names={"0": ("no", "blue"), "1": ("asked first", "green")}),
        Panel("Newest file in force", "none",
              [Query(f"min by (task) ({ask.of('ctxpipe_guard_routing_current')})", legend("task"))],
              "No: some process refused the newest routing file, or took an endpoint back.", "state-timeline",
              heading="a-routing-file-is-not-in-force", width=12, names={"0": ("no", "red"), "1": ("yes", "green")}),
        Panel("Swaps and refusals", "short",
              [Query(f"sum by (task, kind) (increase({ask.of('ctxpipe_guard_swaps_total')}[15m]))",
                     legend("task", "kind")),
               Query(f"sum by (reason) (increase({ask.of('ctxpipe_guard_routing_refused_total')}[15m]))",
                     f"refused {legend('reason')}")],
              "Within 15 minutes.", heading=HEADING),
        Panel("Copies for candidates", "reqps",
              [Query(ask.rate("ctxpipe_guard_shadow_total", "task, outcome"), legend("task", "outcome"))],
              "Real questions that candidates were asked, too; dropped ones cost nothing.", heading=HEADING),
    ]  # fmt: skip
