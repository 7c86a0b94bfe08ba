"""The deciding parts of pipeline.streams: lanes, positions, letters, retries, runner, watchdog, supervisor."""

from __future__ import annotations

import asyncio
import base64
import random
import signal
import threading
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.errors import PositionLost, Retryable
from pipeline.report import BatchReport, DeadLetter
from pipeline.stores.memory import MemoryMarks
from pipeline.stores.store import AppliedPosition, ShardChanged
from pipeline.streams.agents import COMPANY_RECORDS_MIN, BatchRunner
from pipeline.streams.backoff import Backoff
from pipeline.streams.handler import BatchHandler
from pipeline.streams.lanes import BatchState, Lane, LaneLimits, RecordBatch
from pipeline.streams.letters import decode_chunk, decode_letter, encode_chunk, encode_letter, original_record
from pipeline.streams.offsets import Extent, start_position
from pipeline.streams.supervisor import Place, Supervisor
from pipeline.streams.watchdog import Sample, Watchdog
from schemas.bundle import UnitKey
from schemas.record import Record

PARTITION = ("shop.public.orders", 2)


def records(*offsets: int, size: int = 10) -> list[Record]:
    return [Record(*PARTITION, offset, b"k", b"v" * (size - 1)) for offset in offsets]


def ignore(batch: RecordBatch) -> None:
    pass


def finish(lane: Lane, batch: RecordBatch) -> None:
    assert batch.begin()
    batch.finish()
    batch.release()
    assert lane.settle()


class TestLane:
    def test_one_batch_is_out_at_a_time_and_finished_follows_it(self) -> None:
        lane = Lane(PARTITION, 5, LaneLimits(batch_records_max=2))
        lane.extend(records(5, 6, 9))
        first = lane.cut(ignore)
        assert first is not None and [record.offset for record in first.records] == [5, 6]
        assert lane.cut(ignore) is None and lane.finished == 5
        finish(lane, first)
        assert lane.finished == 7
        second = lane.cut(ignore)
        assert second is not None
        finish(lane, second)
        assert lane.finished == lane.expected == 10

    def test_bytes_bound_a_batch_but_one_record_always_goes(self) -> None:
        lane = Lane(PARTITION, 0, LaneLimits(batch_bytes_max=100, lane_bytes_max=100))
        lane.extend(records(0, size=5000) + records(1, 2, size=60))
        assert lane.full
        for expected in ([0], [1], [2]):
            batch = lane.cut(ignore)
            assert batch is not None and [record.offset for record in batch.records] == expected
            finish(lane, batch)
        assert not lane.full and lane.idle

    def test_a_position_beyond_the_records_counts_only_when_all_is_done(self) -> None:
        lane = Lane(PARTITION, 0, LaneLimits())
        lane.extend(records(0, 1))
        lane.reached(4)
        assert lane.finished == 0
        batch = lane.cut(ignore)
        lane.reached(4)
        assert lane.finished == 0 and batch is not None
        finish(lane, batch)
        lane.reached(4)
        assert lane.finished == 4

    def test_what_nobody_began_is_dropped_and_what_runs_is_told(self) -> None:
        lane = Lane(PARTITION, 0, LaneLimits(batch_records_max=1))
        lane.extend(records(0, 1))
        batch = lane.cut(ignore)
        assert batch is not None and lane.discard() is None
        assert not batch.begin() and lane.idle and lane.finished == 0
        lane.extend(records(2))
        running = lane.cut(ignore)
        assert running is not None and running.begin()
        assert lane.discard() is running

    def test_a_dropped_batch_never_counts(self) -> None:
        lane = Lane(PARTITION, 0, LaneLimits())
        lane.extend(records(0))
        batch = lane.cut(ignore)
        assert batch is not None and batch.begin()
        batch.drop()
        batch.finish()
        assert batch.state is BatchState.DROPPED and not lane.settle() and lane.finished == 0

    def test_an_interrupt_comes_once(self) -> None:
        calls: list[str] = []
        batch = RecordBatch(PARTITION, records(0), 1, ignore)
        batch.begin(lambda: calls.append("interrupted"))
        batch.interrupt()
        batch.interrupt()
        assert calls == ["interrupted"]

    @given(
        st.lists(st.tuples(st.integers(1, 30), st.integers(1, 300)), max_size=40),
        st.integers(1, 10),
        st.integers(1, 500),
        st.randoms(use_true_random=False),
    )
    def test_every_record_goes_out_once_in_order(
        self, steps: list[tuple[int, int]], count_max: int, bytes_max: int, chance: random.Random
    ) -> None:
        lane = Lane(PARTITION, 0, LaneLimits(batch_records_max=count_max, batch_bytes_max=bytes_max))
        given_out: list[int] = []
        fetched: list[int] = []
        offset = 0
        for gap, size in steps:
            offset += gap
            lane.extend(records(offset, size=size))
            fetched.append(offset)
            while chance.random() < 0.5 and (batch := lane.cut(ignore)) is not None:
                given_out += [record.offset for record in batch.records]
                finish(lane, batch)
                assert lane.finished == given_out[-1] + 1
        while (batch := lane.cut(ignore)) is not None:
            given_out += [record.offset for record in batch.records]
            finish(lane, batch)
        assert given_out == fetched and lane.idle


class TestStartPosition:
    @pytest.mark.parametrize(
        ("mark", "extent", "compacted", "start"),
        [
            (0, Extent(0, 0), False, 0),
            (0, Extent(7, 20), False, 7),
            (12, Extent(0, 20, 15), False, 12),
            (20, Extent(20, 20, 20), False, 20),
            (5, Extent(9, 20, 5), True, 5),
            (0, Extent(0, 20, 15), False, 0),
            (0, Extent(3, 20, 15), True, 3),
        ],
    )
    def test_where_a_partition_starts(self, mark: int, extent: Extent, compacted: bool, start: int) -> None:
        assert start_position(PARTITION, mark, extent, compacted) == start

    @pytest.mark.parametrize(
        ("mark", "extent", "compacted"),
        [
            (5, Extent(9, 20, 5), False),
            (21, Extent(0, 20), True),
            (0, Extent(3, 20, 15), False),
        ],
    )
    def test_a_hole_is_never_stepped_over(self, mark: int, extent: Extent, compacted: bool) -> None:
        with pytest.raises(PositionLost, match="--snapshot TABLE"):
            start_position(PARTITION, mark, extent, compacted)


class TestLetters:
    def test_a_record_comes_back_as_it_was(self) -> None:
        record = Record("t", 3, 9, None, b"\xff\x00", 17, (("h", b"\x01"),))
        letter = decode_letter(encode_letter(DeadLetter(record, "why", "digest", ["a", "b"]), 100_000, 5))
        assert (letter.reason, letter.digest, letter.bundle_keys) == ("why", "digest", ["a", "b"])
        assert (letter.key_bytes, letter.value_bytes, letter.truncated) == (None, 2, False)
        assert original_record(letter) == record

    @given(st.integers(0, 50_000), st.integers(0, 50_000), st.integers(0, 3000), st.integers(20_000, 60_000))
    def test_a_letter_keeps_within_its_bound(self, key: int, value: int, bundles: int, bytes_max: int) -> None:
        record = Record("t", 0, 0, b"k" * key, b"v" * value)
        encoded = encode_letter(DeadLetter(record, "why", "d", ["bundle"] * bundles), bytes_max, 0)
        letter = decode_letter(encoded)
        assert len(encoded) <= bytes_max
        assert (letter.key_bytes, letter.value_bytes) == (key, value)
        kept = base64.b64decode(letter.value or "")
        assert (b"v" * value).startswith(kept)
        assert letter.truncated == (len(kept) < value or len(base64.b64decode(letter.key or "")) < key)

    def test_a_truncated_record_is_not_taken_for_a_whole_one(self) -> None:
        letter = decode_letter(encode_letter(DeadLetter(Record("t", 0, 0, None, b"v" * 9999), "w", "d"), 5000, 0))
        with pytest.raises(ValueError, match="first part"):
            original_record(letter)

    def test_chunks(self) -> None:
        keys = [UnitKey("", "1"), UnitKey("plane", "N|1")]
        assert decode_chunk(encode_chunk(keys)) == keys
        for broken in (None, b"", b"[1]", b"{"):
            with pytest.raises(ValueError, match="chunk"):
                decode_chunk(broken)


class ImpatientClock:
    """Sleeps at once, and notes how long."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    def now_us(self) -> int:
        return 0

    def monotonic_s(self) -> float:
        return sum(self.slept)

    async def sleep(self, duration_s: float) -> None:
        self.slept.append(duration_s)
        await asyncio.sleep(0)


class Scripted:
    """A flow, an outlet and marks that raise what the script says, in turn, and note what happened."""

    def __init__(self, *script: Exception | None) -> None:
        self.script, self.happened = list(script), []
        self.marks = MemoryMarks()
        self.report = BatchReport(
            dead_letters=[DeadLetter(records(1)[0], "broken", "d")],
            fan_out=[[UnitKey("", "a")]],
            applied={PARTITION: AppliedPosition("shop", 1, "0", 0)},
        )

    def _step(self, what: str) -> None:
        self.happened.append(what)
        failure = self.script.pop(0) if self.script else None
        if failure is not None:
            raise failure

    async def process(self, batch: Sequence[Record]) -> BatchReport:
        self._step("process")
        return self.report

    async def rebuild(self, keys: Sequence[UnitKey]) -> BatchReport:
        self._step(f"rebuild {len(keys)}")
        return BatchReport()

    async def publish(self, report: BatchReport) -> None:
        self._step(f"publish {len(report.dead_letters)}")


class TestHandler:
    async def test_outages_are_waited_out_inside_the_batch(self) -> None:
        away = Retryable("the store is away")
        scripted, clock = Scripted(away, away, None, away), ImpatientClock()
        batch = RecordBatch(PARTITION, records(0, 1), 2, ignore)
        await BatchHandler(scripted, scripted, scripted.marks, clock=clock).denormalise([batch])
        assert scripted.happened == ["process", "process", "process", "publish 1", "publish 1"]
        assert scripted.marks.applied == scripted.report.applied
        assert len(clock.slept) == 3 and not batch.in_outage

    async def test_a_changed_shard_is_not_waited_out(self) -> None:
        scripted = Scripted(ShardChanged("another process"))
        batch = RecordBatch(PARTITION, records(0), 1, ignore)
        with pytest.raises(ShardChanged):
            await BatchHandler(scripted, scripted, scripted.marks, clock=ImpatientClock()).denormalise([batch])
        assert scripted.happened == ["process"]

    async def test_keys_of_several_chunks_are_rebuilt_once_and_a_broken_chunk_is_set_aside(self) -> None:
        chunk = encode_chunk([UnitKey("", "a"), UnitKey("", "b")])
        found = [Record("dirty", 0, number, None, value) for number, value in enumerate((chunk, b"?", chunk))]
        scripted = Scripted()
        batch = RecordBatch(("dirty", 0), found, 3, ignore)
        await BatchHandler(scripted, scripted, scripted.marks, clock=ImpatientClock()).rebuild([batch])
        assert scripted.happened == ["rebuild 2", "publish 1"]
        assert scripted.marks.applied == {("dirty", 0): AppliedPosition("", 3, "", 0)}

    async def test_a_position_tells_which_chunks_it_awaits(self) -> None:
        scripted = Scripted()
        scripted.report.applied[PARTITION] = AppliedPosition("shop", 7, "b", 2)

        async def publish(report: BatchReport) -> None:
            report.fan_out_ends[3] = 12

        scripted.publish = publish  # type: ignore[method-assign]
        batch = RecordBatch(PARTITION, records(0), 1, ignore)
        await BatchHandler(scripted, scripted, scripted.marks, clock=ImpatientClock()).denormalise([batch])
        assert scripted.marks.applied == {PARTITION: AppliedPosition("shop", 7, "b", 2, awaits={3: 12})}


class TestRunner:
    async def run(
        self, handle: object, *batches: RecordBatch, concurrency: int = 9
    ) -> tuple[list[str], list[Exception]]:
        rewinds: list[str] = []
        ended: list[Exception] = []

        class Rewinds:
            def rewind(self, reason: str) -> None:
                rewinds.append(reason)

        async def stream() -> object:
            for batch in batches:
                yield batch

        runner = BatchRunner(handle, concurrency=concurrency, rewinding=Rewinds, end_process=ended.append)  # type: ignore[arg-type]
        await runner.run(stream())  # type: ignore[arg-type]
        while runner._tasks:
            await asyncio.wait(runner._tasks)
            await asyncio.sleep(0)
        return rewinds, ended

    async def test_only_a_handler_that_returns_finishes_its_batch(self) -> None:
        failures = {0: None, 1: ShardChanged("lost"), 2: ValueError("unknown")}
        many = records(*range(COMPANY_RECORDS_MIN))
        batches = [RecordBatch(("t", number), many, len(many), ignore) for number in failures]

        async def handle(group: Sequence[RecordBatch]) -> None:
            failure = failures[group[0].partition[1]]
            if failure is not None:
                raise failure

        rewinds, ended = await self.run(handle, *batches)
        assert [batch.state is BatchState.FINISHED for batch in batches] == [True, False, False]
        assert all(batch.released for batch in batches)
        assert rewinds == ["lost"] and [str(error) for error in ended] == ["unknown"]

    async def test_batches_that_wait_for_a_slot_go_together_within_a_bound(self) -> None:
        sizes = [1, 1, 600, 300, 200, 5000, 1]
        batches = [RecordBatch(("t", number), records(*range(size)), size, ignore) for number, size in enumerate(sizes)]
        groups: list[list[int]] = []

        async def handle(group: Sequence[RecordBatch]) -> None:
            groups.append([len(batch.records) for batch in group])
            for _ in range(20):
                await asyncio.sleep(0)

        await self.run(handle, *batches, concurrency=1)
        assert groups == [[1], [1, 600, 300], [200], [5000], [1]]
        assert all(batch.state is BatchState.FINISHED and batch.released for batch in batches)

    async def test_small_groups_go_one_by_one_and_only_many_records_go_beside_a_running_group(self) -> None:
        sizes = [1, 100, 100, 49, 1, 240]
        batches = [RecordBatch(("t", number), records(*range(size)), size, ignore) for number, size in enumerate(sizes)]
        groups: list[tuple[int, list[int]]] = []
        running = 0

        async def handle(group: Sequence[RecordBatch]) -> None:
            nonlocal running
            running += 1
            groups.append((running, [len(batch.records) for batch in group]))
            for _ in range(20):
                await asyncio.sleep(0)
            running -= 1

        await self.run(handle, *batches)
        assert groups == [(1, [1]), (2, [100, 100, 49, 1]), (1, [240])]
        assert all(batch.state is BatchState.FINISHED for batch in batches)

    async def test_a_batch_dropped_before_its_turn_is_not_handled(self) -> None:
        batch = RecordBatch(PARTITION, records(0), 1, ignore)
        batch.drop()
        handled: list[RecordBatch] = []

        async def handle(group: Sequence[RecordBatch]) -> None:
            handled.extend(group)

        await self.run(handle, batch)
        assert handled == []


class TestWatchdog:
    def stand(self, watchdog: Watchdog, now_s: float, committed: int = 5, **rest: object) -> str | None:
        watchdog.sample(now_s, Sample({PARTITION: committed}, {PARTITION: 9}, **rest))  # type: ignore[arg-type]
        return watchdog.verdict(now_s)

    def test_a_commit_that_stands_still_with_lag_ends_the_worker(self) -> None:
        watchdog = Watchdog(300)
        assert self.stand(watchdog, 0) is None
        assert self.stand(watchdog, 299) is None
        assert self.stand(watchdog, 301) == "shop.public.orders/2 stands at offset 5 for 301 s, with records after it"

    def test_progress_no_lag_an_outage_and_a_rebalance_are_fine(self) -> None:
        watchdog = Watchdog(300)
        assert self.stand(watchdog, 0) is None
        assert self.stand(watchdog, 250, committed=6) is None
        assert self.stand(watchdog, 500, committed=6) is None
        assert self.stand(watchdog, 560, committed=6, excuse="an outage") is None
        assert self.stand(watchdog, 600, committed=6) is None
        assert self.stand(watchdog, 700, committed=9) is None
        assert self.stand(watchdog, 1100, committed=9) is None
        assert self.stand(watchdog, 1110, committed=6, rebalancing=True) is None
        assert self.stand(watchdog, 1200, committed=6) is None

    def test_a_rebalance_without_end_and_a_blocked_loop(self) -> None:
        watchdog = Watchdog(300)
        assert self.stand(watchdog, 0, rebalancing=True) is None
        assert "rebalance" in (self.stand(watchdog, 301, rebalancing=True) or "")
        blocked = Watchdog(300)
        assert blocked.verdict(0) is None
        assert "event loop" in (blocked.verdict(301) or "")


class FakeChild:
    """A process that ends when the test says so."""

    def __init__(self, pid: int) -> None:
        self.pid, self.code, self.signals = pid, None, []

    def poll(self) -> int | None:
        return self.code

    def send_signal(self, number: int) -> None:
        self.signals.append(number)
        self.code = 0

    def kill(self) -> None:
        self.code = -9


class TestSupervisor:
    def make(self, count: int) -> tuple[Supervisor, list[FakeChild], list[float]]:
        children: list[FakeChild] = []
        now_s = [0.0]

        def spawn(command: Sequence[str]) -> FakeChild:
            children.append(FakeChild(len(children)))
            return children[-1]

        places = [Place(str(number), ["worker"]) for number in range(count)]
        return Supervisor(places, spawn=spawn, now_s=lambda: now_s[0]), children, now_s

    def test_a_worker_that_ends_is_started_again_later_and_later(self) -> None:
        supervisor, children, now_s = self.make(1)
        waits = []
        for _ in range(4):
            assert supervisor.look() is None
            children[-1].code = -9
            assert supervisor.look() is None
            waits.append(supervisor.places[0].start_at_s - now_s[0])
            started = len(children)
            assert supervisor.look() is None and len(children) == started
            now_s[0] = supervisor.places[0].start_at_s
        assert supervisor.look() is None and len(children) == 5
        assert all(0.25 * 2**turn <= wait <= 0.5 * 2**turn for turn, wait in enumerate(waits))

    @pytest.mark.parametrize("code", [2, 3])
    def test_a_configuration_or_environment_that_no_restart_mends_ends_all(self, code: int) -> None:
        supervisor, children, _ = self.make(2)
        supervisor.look()
        children[0].code = code
        assert supervisor.run(threading.Event()) == code
        assert children[1].signals == [signal.SIGTERM]

    def test_a_stop_ends_all_in_order(self) -> None:
        supervisor, children, _ = self.make(2)
        supervisor.look()
        stop = threading.Event()
        stop.set()
        assert supervisor.run(stop) == 0
        assert [child.signals for child in children] == [[signal.SIGTERM], [signal.SIGTERM]]


def test_backoff_grows_to_its_limit_with_jitter() -> None:
    backoff = Backoff(first_s=1.0, longest_s=8.0, randomness=random.Random(7))
    waits = [backoff.next_s() for _ in range(6)]
    for wait, most in zip(waits, (1, 2, 4, 8, 8, 8), strict=True):
        assert most / 2 <= wait <= most
    backoff.reset()
    assert backoff.next_s() <= 1.0
