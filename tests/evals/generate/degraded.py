"""Degraded cases: stores away or slow, sections that don't come, contexts that are old, breakers that are open."""

from __future__ import annotations

from collections.abc import Iterator

from tests.evals.generate import departures
from tests.evals.generate.asking import BUNDLES, asked_staff, decided, fetched, film_asks, gate_checks
from tests.evals.generate.trace import MESSAGES
from tests.evals.generate.values import CaseLine, case, check

BUDGET_MS = 100
REAL_ANSWERS = tuple(f"raw/real/local-gate-{number}.json" for number in range(3))
"""What the quantised model said to prompts of the gate, as it came over the wire."""
NO_MODEL = check("calls_max", {"model": 0})


def cases() -> Iterator[CaseLine]:
    yield from _store_away()
    yield from _last_known()
    yield from _sections_missing()
    yield from _too_old()
    yield from _breakers()
    yield from _rate_limits()
    yield from _tools()


def _store_away() -> Iterator[CaseLine]:
    ways = ({"store": "down"}, {"store": "frozen"}, {"store_delay_ms": 400})
    for number, departure in enumerate(departures.late()[:9]):
        way = ways[number % 3]
        name = way.get("store", "slow")
        yield case(
            f"degraded/store-{name}/{departure.key}",
            "degraded",
            "without its store the default bundle answers inside the budget, says so, and nobody decides on it",
            departure.group,
            [
                check("status", "fallback"),
                *asked_staff("only the default"),
                NO_MODEL,
                check("took_ms_max", BUDGET_MS + 5),
            ],
            context=BUNDLES,
            input=departure.asks(),
            conditions=way,
        )
    for number, film in enumerate(departures.asked_films()[:6]):
        way = ways[number % 3]
        yield case(
            f"degraded/no-default-{way.get('store', 'slow')}/{film.key}",
            "degraded",
            "where there is no default either, the flow hears so in time, and guesses nothing",
            f"film-{film.key}",
            [
                check("equals", "unavailable", path="/context"),
                check("equals", False, path="/known"),
                check("contains", "no context", path="/why"),
                NO_MODEL,
                check("took_ms_max", BUDGET_MS + 5),
            ],
            context=BUNDLES,
            input=film_asks(film, "year"),
            conditions=way,
        )


def _last_known() -> Iterator[CaseLine]:
    """What was seen before the store went away, at the age that it has by now."""
    for number, departure in enumerate(departures.very_late()[:8]):
        age_ms = (0, 60_000)[number % 2]
        store = ("down", "frozen")[number // 2 % 2]
        status = "stale" if age_ms else "fresh"
        answered = [{**one, "rung": "last_known"} for one in fetched(departure, status)]
        yield case(
            f"degraded/last-known-{store}-{status}/{departure.key}",
            "degraded",
            "a store that goes away takes nothing from those who had seen it, and makes nothing younger than it is",
            departure.group,
            [check("context_fetched", answered), *gate_checks(departure, stale=bool(age_ms)), check("rung", "primary")],
            context=BUNDLES,
            input=departure.asks(),
            conditions={"warm": True, "store": store, "age_ms": age_ms},
        )


def _sections_missing() -> Iterator[CaseLine]:
    for departure in departures.late()[15:23]:
        yield case(
            f"degraded/partial/{departure.key}",
            "degraded",
            "linked sections that don't come in time are left out and named; the rest is decided on",
            departure.group,
            [
                check("status", "partial"),
                *gate_checks(departure),
                check("equals", "partial", path="/context"),
                check("took_ms_max", BUDGET_MS + 5),
            ],
            context=BUNDLES,
            input=departure.asks(),
            conditions={"fragment_delay_ms": 500},
        )


def _too_old() -> Iterator[CaseLine]:
    for departure, age_ms in zip(departures.very_late()[8:14], (600_001, 900_000, 3_600_000) * 2, strict=False):
        yield case(
            f"degraded/too-old/{departure.key}",
            "degraded",
            "beyond ten minutes a context is too old for any decision but a person's",
            departure.group,
            [check("status", "stale"), *asked_staff("too old"), NO_MODEL],
            context=BUNDLES,
            input=departure.asks(),
            conditions={"age_ms": age_ms},
        )
    for departure, age_ms in zip(departures.late()[23:27], (4_000, 30_000, 300_000, 599_000), strict=False):
        yield case(
            f"degraded/old/{departure.key}",
            "degraded",
            "an announcement can be mended: it is made on a context that is minutes old, which the answer says",
            departure.group,
            [check("status", "stale"), *gate_checks(departure, stale=True), check("equals", "stale", path="/context")],
            context=BUNDLES,
            input=departure.asks(),
            conditions={"age_ms": age_ms},
        )


def _breakers() -> Iterator[CaseLine]:
    for departure in departures.late()[5:9]:
        yield case(
            f"degraded/breaker-first/{departure.key}",
            "degraded",
            "an endpoint whose breaker is open is passed over at once, without being asked",
            departure.group,
            [
                *gate_checks(departure),
                check("rung", "other"),
                check("reason", "breaker_open"),
                check("took_ms_max", 100),
            ],
            context=BUNDLES,
            input=departure.asks(),
            conditions={"breakers_open": ["large"]},
        )
    for departure in departures.late()[9:13]:
        yield case(
            f"degraded/breaker-all/{departure.key}",
            "degraded",
            "with every breaker open the rules answer at once",
            departure.group,
            [
                *gate_checks(departure),
                check("rung", "deterministic"),
                check("reason", "breaker_open"),
                check("took_ms_max", 20),
            ],
            context=BUNDLES,
            input=departure.asks(),
            conditions={"breakers_open": ["large", "other", "local"]},
        )
    for departure in departures.very_late()[14:17]:
        yield case(
            f"degraded/no-rule/{departure.key}",
            "degraded",
            "what only a model or a person may decide goes to a person, once",
            departure.group,
            [
                check("rung", "escalated"),
                check("escalated", True),
                check("equals", "ask_staff", path="/decision"),
                check("tools_called", ["later_departures"]),
            ],
            context=BUNDLES,
            input=departure.asks(),
            conditions={"breakers_open": ["large", "other", "local"]},
        )


def _rate_limits() -> Iterator[CaseLine]:
    for departure in departures.late()[:3]:
        yield case(
            f"degraded/rate-limit-lies/{departure.key}",
            "degraded",
            "at a rate limit the local model is asked at once; what it says has to hold like any other answer",
            departure.group,
            [
                check("rung", ["local", "local"]),
                check("reason", ["rate_limited", "rate_limited"]),
                *decided(departure.decision()),
                check("equals", "rules", path="/answered_by"),
                check("citations", path="/citations"),
            ],
            context=BUNDLES,
            input=departure.asks(),
            conditions={"answers": {"large": ["rate_limited"], "local": [f"raw:raw/wrong-value-{departure.key}.json"]}},
        )
    for departure, name in zip(departures.late()[12:15], REAL_ANSWERS, strict=True):
        yield case(
            f"degraded/rate-limit-cut/{departure.key}",
            "degraded",
            "a local model that is cut in the middle of its sentence leaves the question to another provider",
            departure.group,
            [
                check("rung", "other"),
                check("reason", "rate_limited"),
                *gate_checks(departure),
            ],
            context=BUNDLES,
            input=departure.asks(),
            conditions={"answers": {"large": ["rate_limited"], "local": [f"raw:{name}"]}},
        )
    for number, fault in enumerate(("hang", "error_500", "prose")):
        yield case(
            f"degraded/desk/{fault}",
            "degraded",
            "without its one model the desk is chosen by a word",
            f"message-{number}",
            [
                check("rung", "deterministic"),
                check("schema", "desk"),
                check("equals", ("baggage", "rebooking", "gate")[number], path="/desk"),
            ],
            input={"ask": "desk", "message": MESSAGES[number]},
            conditions={"answers": {"local": [fault]}},
        )


def _tools() -> Iterator[CaseLine]:
    for departure in departures.very_late()[:1] + departures.very_late()[4:5] + departures.very_late()[8:9]:
        yield case(
            f"degraded/tool/{departure.key}",
            "degraded",
            "a booking that fails is not told as done: a person hears of it",
            departure.group,
            [
                check("equals", "ask_staff", path="/decision"),
                check("contains", "out of order", path="/message"),
                check("tools_called", ["later_departures", "rebook", "ask_staff"]),
            ],
            context=BUNDLES,
            input=departure.asks(refuses=["rebook"]),
        )
