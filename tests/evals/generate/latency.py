"""Latency cases: what a call takes on the virtual clock when endpoints and stores are slow, against its deadline."""

from __future__ import annotations

from collections.abc import Iterator

from tests.evals.generate import departures
from tests.evals.generate.asking import BUNDLES, film_asks, gate_checks
from tests.evals.generate.departures import Departure
from tests.evals.generate.values import CaseLine, case, check, spread

LATE_BY_MS_MAX = 50
"""Beyond a deadline, the promise allows so much."""
SLACK_MS = 60
"""For what the recorded answer itself took."""


def cases() -> Iterator[CaseLine]:
    found = spread([*departures.late(), *departures.on_time()], 20)
    for departure, delay_ms in zip(found, (5, 20, 80, 150, 300, 400, 500, 600, 700, 800), strict=False):
        yield _slow_model(departure, delay_ms)
    for departure, delay_ms in zip(found[10:], (5, 10, 25, 40, 50, 60, 70, 75), strict=False):
        yield _slow_store(departure, delay_ms)
    yield from _deadlines()


def _slow_model(departure: Departure, delay_ms: int) -> CaseLine:
    return case(
        f"latency/slow-model/{departure.key}-{delay_ms}",
        "latency",
        "an answer is given on as soon as the model has it: what the flow adds is not felt",
        departure.group,
        [
            *gate_checks(departure),
            check("rung", "primary"),
            check("took_ms_min", delay_ms),
            check("took_ms_max", delay_ms + SLACK_MS),
        ],
        context=BUNDLES,
        input=departure.asks(),
        conditions={"delay_ms": {"large": delay_ms}},
    )


def _slow_store(departure: Departure, delay_ms: int) -> CaseLine:
    return case(
        f"latency/slow-store/{departure.key}-{delay_ms}",
        "latency",
        "a store that is slow, but inside the lookup's budget, costs its delay and nothing else",
        departure.group,
        [
            *gate_checks(departure),
            check("status", "fresh"),
            check("took_ms_max", delay_ms + SLACK_MS),
            check("took_ms_min", delay_ms),
        ],
        context=BUNDLES,
        input=departure.asks(),
        conditions={"store_delay_ms": delay_ms},
    )


def _deadlines() -> Iterator[CaseLine]:
    """Every endpoint hangs, or the first; deadlines of all sizes."""
    rows = [row for row in departures.late() if row.delay]
    for departure, deadline_ms in zip(rows, (150, 250, 400, 600, 900, 1_200, 1_600, 2_000, 2_500, 3_500), strict=False):
        hangs = {name: ["hang"] for name in ("large", "other", "local")}
        yield case(
            f"latency/all-hang/{departure.key}-{deadline_ms}",
            "latency",
            "when every model hangs there is an answer in time all the same: the rules have one",
            departure.group,
            [
                *gate_checks(departure),
                check("rung", "deterministic"),
                check("reason", "timeout"),
                check("took_ms_max", deadline_ms + LATE_BY_MS_MAX),
            ],
            context=BUNDLES,
            input=departure.asks(deadline_ms=deadline_ms),
            conditions={"answers": hangs},
        )
    for departure, deadline_ms in zip(rows[10:], (1_500, 2_000, 2_500, 3_000, 3_500, 4_000), strict=False):
        yield case(
            f"latency/first-hangs/{departure.key}-{deadline_ms}",
            "latency",
            "one endpoint that hangs does not eat the time of those after it",
            departure.group,
            [
                *gate_checks(departure),
                check("rung", "other"),
                check("reason", "timeout"),
                check("took_ms_max", deadline_ms + LATE_BY_MS_MAX),
            ],
            context=BUNDLES,
            input=departure.asks(deadline_ms=deadline_ms),
            conditions={"answers": {"large": ["hang"]}},
        )
    for film, deadline_ms in zip(departures.asked_films()[16:], (200, 500, 1_000, 2_000, 3_000, 5_000), strict=False):
        hangs = {name: ["hang"] for name in ("large", "other", "local")}
        yield case(
            f"latency/people/{film.key}-{deadline_ms}",
            "latency",
            "a question that only a person can answer is with one inside the deadline",
            f"film-{film.key}",
            [
                check("escalated", True),
                check("equals", False, path="/known"),
                check("took_ms_max", deadline_ms + LATE_BY_MS_MAX),
            ],
            context=BUNDLES,
            input=film_asks(film, "plot", deadline_ms=deadline_ms),
            conditions={"answers": hangs},
        )
