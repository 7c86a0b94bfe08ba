"""What a look at a source makes of what its server says, and what of it stands in the metrics."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from connectors import watching
from connectors.postgres.config import PostgresConfig
from connectors.postgres.server import Server
from connectors.postgres.slot_watch import SeenSlot, slot_findings, slot_health
from connectors.registry import Configured, Plugin, configure
from connectors.reporting import LAG_EVERY, report
from connectors.runtime import Runtime
from connectors.source import Finding, LagReport
from connectors.stored import ask
from connectors.watching import Ebb, NodeHealth, Pace, SourceHealth, away, open_watches, publish
from pipeline.core import metrics
from pipeline.core.errors import EnvironmentProblem, Fatal, Retryable

CONFIG = PostgresConfig.model_validate({"name": "shop", "dsn": "postgresql://u@h/d", "tables": ["public.t"]})
SEEN = SeenSlot(
    lsn=5000,
    limited=True,
    plugin="pgoutput",
    database="d",
    active=True,
    restart_lsn=1000,
    confirmed_lsn=4000,
    wal_status="reserved",
    safe_wal_bytes=9000,
    inactive_since_s=None,
    invalidation_reason=None,
)
MISSING = SeenSlot(5000, True, None, None, None, None, None, None, None, None, None)


def judged(seen: SeenSlot, **asked: Any) -> tuple[SourceHealth, list[Finding]]:
    health = slot_health(CONFIG, seen, asked.pop("headroom_s", None), seen.inactive_since_s)
    server = Server("postgresql://u@h/d", "shop")
    asks = asked.get("position"), asked.get("unknown"), asked.get("left_s", 0.0)
    return health, slot_findings(CONFIG, server, seen, health, *asks)


def pace_of(*seen: tuple[float, float]) -> Pace:
    pace = Pace()
    for time_s, value in seen:
        pace.note(time_s, value)
    return pace


def test_a_slot_that_is_read_tells_both_kinds_of_lag_and_how_long_it_would_last() -> None:
    health, findings = judged(SEEN, headroom_s=90.0)
    assert (health.retained_bytes, health.unconfirmed_bytes, health.safe_wal_bytes) == (4000, 1000, 9000)
    assert health.headroom_s == 90 and health.wal_status == "reserved" and health.slot_active is True
    assert [one.severity for one in findings] == ["ok"]


@pytest.mark.parametrize(
    ("changes", "severity", "words"),
    [
        ({"active": False, "inactive_since_s": 1_700_000_000.0}, "warning", "since 2023-11-14 22:13:20 UTC"),
        ({"wal_status": "unreserved", "safe_wal_bytes": -5, "active": False}, "unfit", "at its next checkpoint"),
        ({"wal_status": "lost", "restart_lsn": None, "active": False}, "unfit", "max_slot_wal_keep_size"),
        ({"wal_status": None, "invalidation_reason": "idle_timeout", "active": False}, "unfit", "idle_timeout"),
        ({"limited": False, "safe_wal_bytes": None}, "note", "fills the server's disk"),
        ({"database": "other"}, "unfit", "is not ours"),
    ],
)
def test_a_slot_in_trouble_says_so(changes: dict[str, Any], severity: str, words: str) -> None:
    health, findings = judged(msgspec.structs.replace(SEEN, **changes))
    assert findings[0].severity == severity and words in findings[0].message and findings[0].mend
    assert all(value is None or value >= 0 for value in (health.safe_wal_bytes, health.retained_bytes))
    assert (health.headroom_s == 0) == (health.wal_status == "lost")


def test_a_connector_that_is_just_started_anew_is_no_failure_yet() -> None:
    left = msgspec.structs.replace(SEEN, active=False)
    assert judged(left, left_s=5)[1][0].severity == "warning" and judged(left, left_s=31)[1][0].severity == "unfit"


def test_a_slot_that_is_not_there_was_never_made_or_is_gone() -> None:
    health, (new,) = judged(MISSING)
    assert health.wal_status == "missing" and health.slot_active is False and health.retained_bytes == 0
    assert new.severity == "warning" and "has not begun" in new.message
    _, (gone,) = judged(MISSING, position={"state": "streaming", "lsn": 255})
    assert gone.severity == "unfit" and "0/FF" in gone.message and "--reset" in gone.mend
    _, (either, why) = judged(MISSING, unknown=Finding("warning", "position", "Kafka is away"))
    assert either.severity == "unfit" and "if it has never run" in either.mend and "Kafka is away" in why.message


def test_a_pace_needs_time_and_forgets_another_servers_log() -> None:
    assert Pace().seconds_for(5) is None and pace_of((0, 0), (4, 400)).seconds_for(5) is None
    assert pace_of((0, 0), (10, 1000)).seconds_for(50) == 0.5
    assert pace_of((0, 7), (10, 7)).seconds_for(50) is None
    assert pace_of((0, 9000), (10, 100), (30, 300)).seconds_for(50) == 5
    long = pace_of(*((second, 0.0) for second in range(1000)), (1000, 600.0))
    assert long.seconds_for(50) == 50


def left_after(*rooms: float, every_s: float = 10) -> float | None:
    ebb = Ebb()
    for number, room in enumerate(rooms):
        ebb.note(number * every_s, room)
    return ebb.seconds()


def test_room_that_is_given_back_in_turns_does_not_run_out() -> None:
    assert left_after() is None and left_after(100, 50) is None
    assert left_after(*([100, 80, 60, 40] * 10)) is None and left_after(*([40, 60, 80, 100] * 10)) is None
    steady = [1000 - 10 * number for number in range(31)]
    assert left_after(*steady) == pytest.approx(700)
    assert left_after(*[0] * 20) is None
    turns = [room - 10 * number for number, room in enumerate([1000, 950, 900, 850] * 10)]
    assert left_after(*turns) == pytest.approx(460, abs=50)


def shown(source: str) -> dict[str, float]:
    """Of this source: metric (and the value of its second label) → value."""
    found = {}
    for metric in metrics.REGISTRY.collect():
        for sample in metric.samples:
            if metric.name.startswith("ctxpipe_source_") and sample.labels["source"] == source:
                second = [value for name, value in sample.labels.items() if name != "source"]
                found[" ".join([metric.name.removeprefix("ctxpipe_source_"), *second])] = sample.value
    return found


def test_what_is_not_known_any_more_leaves_the_metrics() -> None:
    health, _ = judged(SEEN)
    publish(health)
    assert shown("shop") == {
        "up": 1,
        "retained_bytes": 4000,
        "unconfirmed_bytes": 1000,
        "safe_wal_bytes": 9000,
        "wal_status reserved": 1,
        "slot_active": 1,
        "floor_seconds": 0,
    }
    lost, _ = judged(msgspec.structs.replace(SEEN, wal_status="lost", active=False, safe_wal_bytes=None))
    publish(lost)
    assert shown("shop")["wal_status lost"] == 1 and "wal_status reserved" not in shown("shop")
    assert shown("shop")["slot_active"] == 0 and "safe_wal_bytes" not in shown("shop")
    publish(away("shop", Retryable("h can't be reached")))
    assert shown("shop") == {"up": 0}
    nodes = (NodeHealth("a", 5, 10), NodeHealth("b", 6, 10))
    publish(SourceHealth(source="shop", up=True, nodes=nodes))
    publish(SourceHealth(source="shop", up=True, nodes=nodes[1:]))
    assert shown("shop") == {"up": 1, "cdc_raw_bytes b": 6, "cdc_raw_limit_bytes b": 10}
    watching.forget("shop")
    assert shown("shop") == {}


class Obstinate:
    """A source whose watch fails in whatever way."""

    def __init__(self, config: Any) -> None: ...
    async def open(self, position: Any) -> None: ...
    async def read(self) -> Any: ...
    async def acknowledge(self, position: Any) -> None: ...
    async def close(self) -> None: ...
    def watch(self, stored: Any, clock: Any) -> Obstinate:
        return self

    error: BaseException | None = None
    closed = 0

    async def look(self) -> SourceHealth:
        if self.error is not None:
            raise self.error
        await asyncio.Event().wait()
        raise AssertionError


def watch_of(source: type[Any] | None) -> watching.Watching:
    class Config(PostgresConfig): ...

    return open_watches([Configured(Plugin("p", "", Config, source), CONFIG)])["shop"]


async def test_a_watch_says_only_that_a_source_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (Retryable("gone"), EnvironmentProblem("refused"), Fatal("strange")):
        monkeypatch.setattr(Obstinate, "error", error)
        with pytest.raises(Retryable, match=str(error)):
            await watch_of(Obstinate).look()
    monkeypatch.setattr(Obstinate, "error", None)
    monkeypatch.setattr(watching, "LOOK_TIMEOUT_S", 0.05)
    with pytest.raises(Retryable, match="did not answer within"):
        await watch_of(Obstinate).look()
    assert (await watching.look("shop", watch_of(Obstinate))).up is False


async def test_topics_that_others_fill_have_nothing_to_look_at() -> None:
    sources = configure({"theirs": {"connector": "debezium"}, "shop": {**CONFIG.model_dump(exclude={"name"})}})
    health = await open_watches(sources)["theirs"].look()
    assert health.up is None and "others fill its topics" in health.findings[0].message
    publish(health)
    assert shown("theirs") == {}
    assert msgspec.json.encode(health.as_dict())


async def test_a_kafka_that_is_away_makes_no_source_away() -> None:
    async def gone(name: str) -> None:
        raise Retryable(f"no Kafka for {name}")

    position, why = await ask(gone, "shop")
    assert position is None and why is not None and "no Kafka for shop" in why.message


class Lagging:
    """A source that is 7 bytes behind, or away."""

    error: Retryable | None = None

    async def lag(self) -> LagReport:
        if self.error is not None:
            raise self.error
        return LagReport(7, 9, "reserved")


class Steps:
    """A clock that stops at each pause until the test goes on."""

    def __init__(self) -> None:
        self.pauses = asyncio.Semaphore(0)
        self.paused = asyncio.Semaphore(0)

    def now_us(self) -> int:
        return 0

    def monotonic_s(self) -> float:
        return 0.0

    async def sleep(self, duration_s: float) -> None:
        self.paused.release()
        await self.pauses.acquire()

    async def rounds(self, count: int) -> None:
        for _ in range(count):
            await self.paused.acquire()
            self.pauses.release()
        await self.paused.acquire()
        self.paused.release()


async def test_a_connector_whose_source_is_away_shows_no_old_lag() -> None:
    def lag() -> float | None:
        return metrics.REGISTRY.get_sample_value("ctxpipe_connector_position_lag_bytes", {"source": "lagging"})

    runtime, source, clock = Runtime(no_attempt), Lagging(), Steps()
    runtime.statistics.acknowledged = 1
    reporting = asyncio.create_task(report("lagging", runtime, clock))
    runtime.source = source  # type: ignore[assignment]
    await clock.rounds(LAG_EVERY)
    assert lag() == 7
    source.error = Retryable("away")
    await clock.rounds(LAG_EVERY)
    assert lag() is None
    source.error = None
    await clock.rounds(LAG_EVERY)
    assert lag() == 7
    runtime.source = None
    await clock.rounds(LAG_EVERY)
    assert lag() is None
    reporting.cancel()


async def no_attempt() -> Any:
    raise AssertionError
