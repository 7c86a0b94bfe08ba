"""Freshness: batches told of at once count as if each change had been observed alone, and only live ones count."""

from __future__ import annotations

import random
from collections.abc import Iterator

import msgspec
import pytest
from prometheus_client import CollectorRegistry, Histogram

from pipeline.core import metrics
from pipeline.core.freshness import AT_ONCE_MAX, SHARES, STAGES, Freshness, budgets_s
from pipeline.flow import Flow
from pipeline.merging import Merging
from pipeline.plan import compile_plan
from pipeline.report import BatchReport, Times
from pipeline.stores.memory import MemoryBundles, MemoryCells, MemoryRelations, MemoryRows
from pipeline.stores.store import AppliedPosition
from pipeline.streams.handler import BatchHandler
from pipeline.streams.journey import Journeys, SpaceJourneys, times_of_chunks
from pipeline.streams.lanes import RecordBatch
from pipeline.streams.letters import encode_chunk
from pipeline.streams.progress import watermarks_us
from pipeline.streams.reporting import WorkerMetrics
from schemas.bundle import UnitKey
from schemas.context import ContextSpec, Serving
from schemas.envelope import encode
from schemas.event import ChangeEvent, Operation, version_of
from schemas.headers import commit_time_header, commit_time_of, trace_of
from schemas.mutation import Cell, Marker, Mutation, MutationSource, encode_mutation
from schemas.record import Record
from tests.support.embedding_world import QuickClock

NOW_US = 1_800_000_000_000_000
SPEC = ContextSpec.model_validate(
    {
        "context": "fresh",
        "version": 1,
        "root": "order",
        "entities": {"order": {"source": "shop", "table": "public.orders", "key": ["id"]}},
        "fields": ["id"],
        "serving": {"max_age_ms": 1000},
        "embedding": {"engine": "hash", "dimension": 8, "template": "{{ id }}"},
    }
)
_contexts = (f"fresh{number}" for number in range(1_000))


@pytest.fixture
def context() -> Iterator[str]:
    yield next(_contexts)


def shown(context: str, stage: str) -> dict[str, float]:
    """What /metrics says of a stage: updates, late, count, sum and each bucket."""
    found: dict[str, float] = {}
    names = {"ctxpipe_freshness_updates_total": "updates", "ctxpipe_freshness_late_total": "late"}
    for family in metrics.REGISTRY.collect():
        for sample in family.samples:
            if sample.labels.get("context") == context and sample.labels.get("stage") == stage:
                name = names.get(sample.name, sample.name.removeprefix("ctxpipe_freshness_seconds_"))
                found[sample.labels.get("le", name)] = sample.value
    return found


def observed_alone(ages_s: list[float]) -> dict[str, float]:
    alone = Histogram("alone", "One by one.", registry=CollectorRegistry(), buckets=metrics.FRESHNESS_S)
    for age_s in ages_s:
        alone.observe(age_s)
    samples = [sample for family in alone.collect() for sample in family.samples]
    return {sample.labels.get("le", sample.name.removeprefix("alone_")): sample.value for sample in samples}


@pytest.mark.parametrize("seed", range(20))
def test_a_batch_counts_as_its_changes_alone(context: str, seed: int) -> None:
    chance = random.Random(seed)
    freshness = Freshness(context, Serving(max_age_ms=1000), ["in_redis"])
    spread_us = chance.choice([10, 10_000, 100_000_000, 8_000_000_000])
    times_us = [
        NOW_US
        - chance.choice([chance.randrange(-1_000_000, spread_us), *(round(b * 1e6) for b in metrics.FRESHNESS_S)])
        for _ in range(chance.choice([1, AT_ONCE_MAX, AT_ONCE_MAX + 1, 500]))
    ]
    freshness.note("in_redis", times_us, NOW_US)
    ages_s = [max(0, NOW_US - time_us) / 1e6 for time_us in times_us]
    found, alone = shown(context, "in_redis"), observed_alone(ages_s)
    assert {bound: found[bound] for bound in alone if bound != "created"} == pytest.approx(
        {bound: count for bound, count in alone.items() if bound != "created"}
    )
    assert found["updates"] == len(times_us) and found["late"] == sum(age_s > 1 for age_s in ages_s)


def test_alike_changes_are_of_the_age_of_the_oldest(context: str) -> None:
    freshness = Freshness(context, Serving(max_age_ms=1000), ["captured"])
    freshness.note_alike("captured", NOW_US - 200_000, 30, NOW_US)
    freshness.note_alike("captured", NOW_US - 2_000_000, 3, NOW_US)
    freshness.note_alike("captured", NOW_US + 5_000_000, 2, NOW_US)  # a clock that goes ahead
    freshness.note_alike("captured", NOW_US, 0, NOW_US)
    found = shown(context, "captured")
    assert (found["updates"], found["late"], found["0.01"], found["0.2"]) == (35, 3, 2, 32)
    assert found["sum"] == pytest.approx(12.0)


def test_budgets_are_shares_of_the_objective_unless_the_spec_says_more(context: str) -> None:
    assert tuple(SHARES) == STAGES and list(SHARES.values()) == sorted(SHARES.values()) and SHARES["in_redis"] == 1
    serving = Serving(max_age_ms=4000, stage_budgets_ms={"embedded": 60_000})
    budgets = budgets_s(serving)
    assert (budgets["captured"], budgets["in_redis"], budgets["embedded"]) == (1.0, 4.0, 60.0)
    Freshness(context, serving, ["embedded"])
    labels = {"context": context, "stage": "embedded"}
    assert metrics.REGISTRY.get_sample_value("ctxpipe_freshness_budget_seconds", labels) == 60
    assert shown(context, "embedded")["updates"] == 0, "the series is there before the first update"
    with pytest.raises(ValueError, match="stage_budgets_ms"):
        Serving.model_validate({"stage_budgets_ms": {"redis": 5}})


def change(number: int, operation: Operation, commit_time_us: int, offset: int, version: int = 1) -> Record:
    event = ChangeEvent(
        source="shop",
        table="public.orders",
        operation=operation,
        key={"id": number},
        row=None if operation is Operation.DELETE else {"id": number},
        version=version_of(version, number),
        commit_time_us=commit_time_us,
    )
    encoded = encode(event, "db", 0)[0]
    return Record("shop.public.orders", 0, offset, encoded.key, encoded.value)


class Ticking(QuickClock):
    """A millisecond passes with every look at it."""

    def now_us(self) -> int:
        self.elapsed_s += 0.001
        return NOW_US + round(self.elapsed_s * 1e6)


class Kept:
    """An outlet and marks."""

    def __init__(self) -> None:
        self.reports: list[BatchReport] = []

    async def publish(self, report: BatchReport) -> None:
        self.reports.append(report)

    async def write_applied(self, positions: object) -> None: ...


class World:
    def __init__(self, context: str, foreign: bool = False) -> None:
        self.clock, self.kept = Ticking(), Kept()
        flow = Flow(
            compile_plan(SPEC),
            MemoryRows(),
            MemoryRelations(),
            MemoryBundles(),
            embeds=True,
            now_us=self.clock.now_us,
            foreign={"shop.public.orders"} if foreign else (),
        )
        freshness = Freshness(context, SPEC.serving, ("in_kafka", "applied", "assembled", "in_redis"))
        self.journeys = Journeys(context, self.clock, freshness)
        self.handler = BatchHandler(
            flow,
            self.kept,
            self.kept,
            clock=self.clock,
            journeys=self.journeys,  # type: ignore[arg-type]
        )

    async def handle(self, *records: Record, topic: str = "shop.public.orders") -> None:
        batch = RecordBatch((topic, 0), list(records), records[-1].offset + 1, lambda batch: None)
        await (self.handler.rebuild if topic == "dirty" else self.handler.denormalise)([batch])


async def test_changes_count_in_each_stage_with_what_it_took_and_snapshots_do_not(context: str) -> None:
    world = World(context)
    world.journeys.live = True
    old_us = NOW_US - 3_000_000
    await world.handle(change(1, Operation.CREATE, NOW_US, 0), change(2, Operation.UPDATE, old_us, 1))
    found = {stage: shown(context, stage) for stage in ("applied", "assembled", "in_redis")}
    assert {(one["updates"], one["late"]) for one in found.values()} == {(2, 1)}
    assert 3 < found["applied"]["sum"] < found["assembled"]["sum"] < found["in_redis"]["sum"] < 3.1
    assert [commit_time_of(report.headers) for report in world.kept.reports] == [old_us]
    # Rows of a snapshot are old by nature. With one among them, nobody can tell which text is a live one's.
    await world.handle(change(3, Operation.SNAPSHOT, old_us, 2), change(4, Operation.DELETE, NOW_US, 3))
    assert shown(context, "in_redis")["updates"] == 3 and world.kept.reports[-1].headers == ()
    # A stale version makes no difference, so it is no update.
    await world.handle(change(1, Operation.UPDATE, NOW_US, 4, version=0))
    assert shown(context, "in_redis")["updates"] == 3


async def test_of_topics_that_others_fill_the_records_tell_when_they_came_to_kafka(context: str) -> None:
    world = World(context, foreign=True)
    world.journeys.live = True
    late = msgspec.structs.replace(change(1, Operation.CREATE, NOW_US, 0), timestamp_ms=NOW_US // 1000 + 700)
    ahead = msgspec.structs.replace(change(2, Operation.CREATE, NOW_US, 1), timestamp_ms=NOW_US // 1000 - 700)
    await world.handle(late, ahead)
    found = shown(context, "in_kafka")
    assert (found["updates"], found["late"], found["0.01"], found["sum"]) == (2, 1, 1, 0.7)


async def test_what_nobody_waits_for_or_comes_again_is_no_update(context: str) -> None:
    world = World(context)
    await world.handle(change(1, Operation.CREATE, NOW_US - 9_000_000, 0))
    assert shown(context, "in_redis")["updates"] == 0, "the version does not serve yet: this is a backfill"
    assert world.kept.reports[-1].headers == ()
    world.journeys.live = True
    await world.handle(change(2, Operation.CREATE, NOW_US, 1))
    await world.handle(change(2, Operation.CREATE, NOW_US, 1))  # after a rewind to the marks
    assert shown(context, "in_redis")["updates"] == 1
    await world.handle(change(3, Operation.CREATE, NOW_US, 2))
    assert shown(context, "in_redis")["updates"] == 2


async def test_chunks_of_the_dirty_lane_keep_the_commit_time_of_their_change(context: str) -> None:
    world = World(context)
    world.journeys.live = True
    value = encode_chunk([UnitKey("", "1")])
    chunks = [
        Record("dirty", 0, 0, None, value, 0, (commit_time_header(NOW_US - 5_000_000),)),
        Record("dirty", 0, 1, None, value),
    ]
    await world.handle(*chunks, topic="dirty")
    found = shown(context, "in_redis")
    assert (found["updates"], found["late"]) == (1, 1) and shown(context, "applied")["updates"] == 0
    assert times_of_chunks(chunks) == [NOW_US - 5_000_000]


async def test_writes_of_wide_column_tables_count_once_each(context: str) -> None:
    spec = SPEC.model_copy(update={"entities": {"order": SPEC.entities["order"].model_copy(update={"table": "ks.o"})}})
    plan, clock = compile_plan(spec), Ticking()
    rows = MemoryRows()
    merging = Merging(plan, MemoryCells(rows), clock.now_us, {"shop.ks.o"})
    flow = Flow(plan, rows, MemoryRelations(), MemoryBundles(), merging=merging, now_us=clock.now_us)

    def write(offset: int, ts_us: int, snapshot: bool) -> Record:
        source = MutationSource("scylla", "shop", "ks", "o", snapshot)
        mutation = Mutation(marker=Marker(ts_us), cells={"v": Cell(ts_us, offset)})
        return Record("shop.ks.o", 0, offset, *encode_mutation(source, {"id": 1}, mutation, 0), NOW_US // 1000 + 5)

    report = await flow.process([write(0, NOW_US, False), write(1, NOW_US + 1, False), write(2, NOW_US - 9, True)])
    assert sorted(report.times.live_us) == [NOW_US, NOW_US + 1] and report.times.snapshot_rows == 1
    assert sorted(report.times.to_kafka_us) == [4_999, 5_000], "their connector is not ours: the records' times tell"
    assert report.times.applied < report.times.assembled < report.times.stored


def test_only_a_serving_space_passes_on_what_is_waited_for() -> None:
    trace = ("traceparent", b"00-%032x-%016x-01" % (1, 2))
    requests = [
        Record("wanted", 0, 0, b"1", b"{}", 0, (commit_time_header(7), trace)),
        Record("wanted", 0, 1, b"1", b"{}", 0, (commit_time_header(5),)),
        Record("wanted", 0, 2, b"1", b"{}"),
    ]
    journeys = SpaceJourneys("fresh", "s", QuickClock())
    assert journeys.passed_on(requests) == ()
    journeys.live = True
    assert journeys.passed_on(requests) == (commit_time_header(5), trace)
    assert journeys.passed_on(requests[2:]) == ()


@pytest.mark.parametrize("value", [b"", b"-5", b"x", b"1" * 19, "٣".encode()])
def test_headers_of_others_are_no_trouble(value: bytes) -> None:
    assert commit_time_of([("ctxpipe-commit-us", value)]) == 0
    assert trace_of([("tracestate", b"a=b"), ("other", value)]) == ()


def test_the_watermark_of_a_source_is_that_of_its_last_partition_and_ages(context: str) -> None:
    applied = {
        ("a", 0): AppliedPosition("shop", 5, "1", NOW_US),
        ("b", 0): AppliedPosition("shop", 5, "1", NOW_US - 2_000_000),
        ("c", 0): AppliedPosition("fleet", 5, "", 0),
        ("dirty", 0): AppliedPosition("", 5, "", 0),
    }
    assert watermarks_us(applied) == {"shop": NOW_US - 2_000_000, "fleet": 0}
    clock = QuickClock()
    worker = WorkerMetrics(context, clock)
    begun_us = clock.now_us()

    def age_s(source: str) -> float | None:
        return metrics.REGISTRY.get_sample_value(
            "ctxpipe_watermark_age_seconds", {"context": context, "source": source}
        )

    worker.watermarks({"shop": begun_us - 2_000_000, "fleet": 0})
    assert age_s("shop") == 2 and age_s("fleet") is None
    clock.elapsed_s += 60
    assert age_s("shop") == 62, "nothing came, and it is older all the same"
    worker.watermarks({"shop": 0})
    assert age_s("shop") is None


def test_times_of_a_report_are_its_own() -> None:
    one, other = BatchReport(), BatchReport()
    one.times.live_us.append(1)
    assert other.times == Times()
