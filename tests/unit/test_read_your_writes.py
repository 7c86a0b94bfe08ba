"""Lookups that must have seen a position: they wait for it inside their budget, or say that they may not have."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import httpx
import pytest

from pipeline.lookup import applied_watch, http
from pipeline.lookup.applied_watch import CLOCKS_DIFFER_US, AppliedWatch
from pipeline.lookup.keys import MalformedKey
from pipeline.lookup.options import BadOptions, LookupOptions
from pipeline.lookup.search_answer import SearchAnswer
from pipeline.lookup.search_request import SearchRequest
from pipeline.lookup.served import ServedContext
from pipeline.lookup.service import LookupService
from pipeline.stores.store import AppliedPosition, Fetched, Partition
from schemas.bundle import FragmentReference, Meta, SourceState, Stored
from schemas.event import version_of
from schemas.position import SourcePosition, position_of, token_of, token_of_lsn, token_of_write_time
from tests.support.search_world import SearchWorld
from tests.unit.test_lookup import EMPTY, NOW_US, FixedClock, MemoryReader, spec

FLIGHTS, PLANES, DIRTY = "nyc.public.flights", "fleet.public.planes", "ctxpipe.flight.v3.dirty"
SYSTEM = "7412345678901234567"


def at(lsn: int, source: str = "nyc", offset: int = 1, cluster: str = SYSTEM, **more: Any) -> AppliedPosition:
    return AppliedPosition(source, offset, version_of(lsn, lsn), NOW_US - 10_000, cluster, **more)


def lane(offset: int) -> AppliedPosition:
    return AppliedPosition("", offset, "", 0)


UNREAD = AppliedPosition("", 0, "", 0)


class CountingReader(MemoryReader):
    """Both tables in two partitions each, everything before log position 100 applied."""

    def __init__(self) -> None:
        super().__init__()
        self.read = 0
        body = b'{"id":1,"plane":,"airline":}'
        references = [FragmentReference(16, "plane", "N1"), FragmentReference(27, "airline", None)]
        meta = Meta("h", 3, {"nyc": SourceState(version_of(90, 7), 5)}, references)
        plane = Stored(1, Meta("p", 3, {"fleet": SourceState(version_of(70, 7), 5)}), b'{"tail":"N1"}')
        self.bundles["1"] = Fetched(Stored(1, meta, body), {("plane", "N1"): plane})
        self.applied = {(topic, number): at(100, source) for topic, source in TOPICS for number in (0, 1)}

    async def read_applied(self) -> dict[Partition, AppliedPosition]:
        self.read += 1
        return dict(await super().read_applied())

    def advance(self, lsn: int, source: str = "nyc", partitions: Sequence[int] = (0, 1), **more: Any) -> None:
        for (topic, number), known in list(self.applied.items()):
            if known.source == source and number in partitions:
                self.applied[topic, number] = at(lsn, source, known.offset + 1, **more)


TOPICS = ((FLIGHTS, "nyc"), (PLANES, "fleet"))


@pytest.fixture
def reader() -> CountingReader:
    return CountingReader()


def service(reader: MemoryReader, **serving: Any) -> LookupService:
    return LookupService({"flight": ServedContext(spec(**serving), reader, EMPTY)}, FixedClock())


def after(*tokens: str, budget_ms: float = 2_000) -> LookupOptions:
    return LookupOptions(positions=tokens, budget_ms=budget_ms)


SOON_MS = 40.0


async def test_what_has_passed_is_answered_at_once(reader: CountingReader) -> None:
    for lsn in (0, 50, 99):
        answer = await service(reader).get("flight", "1", after(token_of_lsn("nyc", lsn, SYSTEM)))
        assert (answer.status, answer.not_reached) == ("fresh", ())


async def test_a_log_position_is_passed_only_by_what_begins_behind_it(reader: CountingReader) -> None:
    """A transaction whose commit begins where the heartbeat ends is not in yet."""
    answer = await service(reader).get("flight", "1", after(token_of_lsn("nyc", 100), budget_ms=SOON_MS))
    assert answer.status == "stale"
    (missing,) = answer.not_reached
    assert missing.source == "nyc" and position_of(missing.position).value == 100
    assert missing.reason == "changes of nyc are in up to 0/63, not yet 0/64"


async def test_a_lookup_waits_until_every_partition_has_passed(reader: CountingReader) -> None:
    answering = asyncio.create_task(service(reader).get("flight", "1", after(token_of_lsn("nyc", 150))))
    await asyncio.sleep(0.03)
    reader.advance(200, partitions=[0])
    await asyncio.sleep(0.03)
    assert not answering.done()
    reader.advance(200, partitions=[1])
    answer = await answering
    assert (answer.status, answer.not_reached) == ("fresh", ())


async def test_the_bundle_is_read_after_the_wait(reader: CountingReader) -> None:
    answering = asyncio.create_task(service(reader).get("flight", "1", after(token_of_lsn("nyc", 150))))
    await asyncio.sleep(0.02)
    reader.bundles["1"] = Fetched(Stored(2, Meta("h2", 3), b'{"id":1,"new":true}'), {})
    reader.advance(200)
    assert (await answering).bundle == b'{"id":1,"new":true}'


async def test_all_of_several_positions_count(reader: CountingReader) -> None:
    reader.advance(200)
    tokens = [token_of_lsn("nyc", 150), token_of_lsn("nyc", 190), token_of_lsn("fleet", 150)]
    answer = await service(reader).get("flight", "1", after(*tokens, budget_ms=SOON_MS))
    assert answer.status == "stale" and [one.source for one in answer.not_reached] == ["fleet"]


async def test_batches_carry_the_label_on_every_answer(reader: CountingReader) -> None:
    wanted = after(token_of_lsn("nyc", 150), budget_ms=SOON_MS)
    answers = await service(reader).get_many("flight", ["1", "2"], wanted)
    assert [answer.status for answer in answers] == ["stale", "missing"]
    assert all(answer.not_reached for answer in answers)
    assert json.loads(answers[1].to_json())["not_reached"][0]["source"] == "nyc"


async def test_a_default_bundle_says_so_too(reader: CountingReader) -> None:
    wanted = after(token_of_lsn("nyc", 150), budget_ms=SOON_MS)
    answer = await service(reader, default={"id": None}).get("flight", "2", wanted)
    assert answer.status == "fallback" and answer.not_reached
    reader.hangs = True
    answer = await service(reader, default={"id": None}).get("flight", "1", wanted)
    assert answer.status == "fallback" and answer.not_reached[0].reason == "the store did not answer"


class TestUnknown:
    """What nobody knows has not passed."""

    async def missing(self, reader: CountingReader) -> str:
        answer = await service(reader).get("flight", "1", after(token_of_lsn("nyc", 50), budget_ms=SOON_MS))
        assert answer.status == "stale"
        return answer.not_reached[0].reason

    async def test_a_partition_that_has_given_nothing_yet(self, reader: CountingReader) -> None:
        reader.applied[FLIGHTS, 2] = UNREAD
        assert "nobody knows yet" in await self.missing(reader)

    async def test_a_table_of_which_nothing_is_read(self, reader: CountingReader) -> None:
        reader.applied = {place: one for place, one in reader.applied.items() if place[0] != FLIGHTS}
        reader.applied["nyc.public.other", 0] = at(200)
        assert "nobody knows yet" in await self.missing(reader)

    async def test_only_snapshot_rows(self, reader: CountingReader) -> None:
        reader.applied[FLIGHTS, 1] = AppliedPosition("nyc", 9, "", 0)
        assert "nobody knows yet" in await self.missing(reader)

    async def test_some_partitions_are_still_at_another_server(self, reader: CountingReader) -> None:
        reader.advance(200, partitions=[0], cluster="8")
        answer = await service(reader).get(
            "flight", "1", after(token_of_lsn("nyc", 50, "8"), budget_ms=SOON_MS)
        )  # fmt: skip
        assert answer.status == "stale" and "server" in answer.not_reached[0].reason


class TestDirtyLane:
    """A hot parent's change is in its children's bundles only when the dirty lane has rebuilt them."""

    async def test_a_position_counts_when_what_it_led_to_is_rebuilt(self, reader: CountingReader) -> None:
        reader.applied[DIRTY, 3] = lane(11)
        reader.advance(200, awaits={3: 12})
        answering = asyncio.create_task(service(reader).get("flight", "1", after(token_of_lsn("nyc", 150))))
        await asyncio.sleep(0.03)
        assert not answering.done()
        reader.applied[DIRTY, 3] = lane(12)
        assert (await answering).status == "fresh"

    async def test_under_lasting_fan_out_each_position_waits_for_its_own_chunks(self, reader: CountingReader) -> None:
        watch = AppliedWatch(reader, dict(TOPICS), DIRTY)
        await watch.read()
        wanted = [SourcePosition("nyc", "lsn", 150)]
        for step in range(5):
            reader.applied[DIRTY, 0] = lane(step)
            reader.advance(200 + step, awaits={0: step + 2})
            await watch.read()
            # Never rebuilt completely, and yet the first of these positions is at the third reading.
            assert bool(watch.missing(wanted)) == (step < 2)
        before = watch.reached("nyc").before
        assert before is not None and 200 <= before < 204

    async def test_ages_wait_for_the_lane_as_well(self, reader: CountingReader) -> None:
        served = service(reader)
        await served.get("flight", "1")
        reader.advance(200, awaits={0: 5})
        reader.applied[FLIGHTS, 0] = AppliedPosition("nyc", 9, version_of(200, 200), NOW_US, SYSTEM, {0: 5})
        context = served.served("flight")
        await context.watch.read()
        assert context.watch.seen.as_of_us["nyc"] == NOW_US - 10_000
        answer = await served.get("flight", "1")
        assert answer.as_of_us["nyc"] == NOW_US - 10_000


async def test_what_the_store_lost_is_not_taken_for_reached(reader: CountingReader) -> None:
    watch = AppliedWatch(reader, dict(TOPICS), DIRTY)
    reader.advance(200)
    await watch.read()
    assert not watch.missing([SourcePosition("nyc", "lsn", 150)])
    reader.applied = {place: at(90, one.source, 1) for place, one in reader.applied.items()}
    await watch.read()
    assert watch.missing([SourcePosition("nyc", "lsn", 150)])
    reader.applied = {}
    await watch.read()
    assert watch.missing([SourcePosition("nyc", "lsn", 1)])


async def test_a_reading_that_comes_late_changes_nothing(reader: CountingReader) -> None:
    watch, old = AppliedWatch(reader, dict(TOPICS), DIRTY), dict(reader.applied)
    held, release = asyncio.Event(), asyncio.Event()

    async def slow() -> dict[Partition, AppliedPosition]:
        held.set()
        await release.wait()
        return old

    fast, reader.read_applied = reader.read_applied, slow  # type: ignore[method-assign]
    first = asyncio.create_task(watch.read())
    await held.wait()
    reader.read_applied = fast  # type: ignore[method-assign]
    reader.advance(200)
    await watch.read()
    release.set()
    await first
    assert not watch.missing([SourcePosition("nyc", "lsn", 150)])


async def test_write_times_leave_room_for_other_clocks(reader: CountingReader) -> None:
    def beat(time_us: int) -> AppliedPosition:
        return AppliedPosition("fleet", 2, version_of(time_us, 0), time_us)

    written_us = NOW_US - 5_000_000
    wanted = after(token_of_write_time("fleet", written_us), budget_ms=SOON_MS)
    for number in (0, 1):
        reader.applied[PLANES, number] = beat(written_us + CLOCKS_DIFFER_US)
    answer = await service(reader, max_age_ms=60_000).get("flight", "1", wanted)
    assert answer.status == "stale" and "before the position" in answer.not_reached[0].reason
    for number in (0, 1):
        reader.applied[PLANES, number] = beat(written_us + CLOCKS_DIFFER_US + 1)
    assert (await service(reader, max_age_ms=60_000).get("flight", "1", wanted)).status == "fresh"


@pytest.mark.parametrize(
    ("token", "told"),
    [
        ("nonsense", "is no position"),
        (token_of_lsn("shop", 5), "context flight reads no source 'shop'; it reads fleet, nyc"),
        (token_of_lsn("nyc", 5, "1"), "of another server than the one that source nyc is read from"),
        (token_of_write_time("nyc", 5), "a write time of Cassandra or Scylla for source nyc, which tells a log"),
    ],
)
async def test_what_can_never_be_reached_is_refused(reader: CountingReader, token: str, told: str) -> None:
    with pytest.raises(BadOptions, match=told):
        await service(reader).get("flight", "1", after(token, token_of_lsn("nyc", 10**9)))
    transport = httpx.ASGITransport(http.make_app(service(reader)))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        answer = await client.get("/v1/contexts/flight/1", params={"position": token})
        assert answer.status_code == 400 and told in answer.json()["detail"]
        answer = await client.post(
            "/v1/contexts/flight:batchGet", json={"keys": ["1"]}, params={"position": token}
        )  # fmt: skip
        assert answer.status_code == 400 and told in answer.json()["detail"]


async def test_a_malformed_key_is_told_before_any_wait(reader: CountingReader) -> None:
    with pytest.raises(MalformedKey):
        await service(reader).get("flight", "1|2", after(token_of_lsn("nyc", 10**9), budget_ms=50_000))


async def test_without_known_servers_positions_are_compared(reader: CountingReader) -> None:
    reader.advance(200, cluster="")
    answer = await service(reader).get("flight", "1", after(token_of_lsn("nyc", 150, "1")))
    assert answer.status == "fresh"


class TestMonotonicReads:
    async def test_an_answer_carries_what_it_has_seen(self, reader: CountingReader) -> None:
        answer = await service(reader).get("flight", "1")
        assert position_of(answer.position["nyc"]) == SourcePosition("nyc", "lsn", 99, SYSTEM)
        assert json.loads(answer.to_json())["position"] == answer.position
        again = await service(reader).get("flight", "1", after(*answer.position.values(), budget_ms=SOON_MS))
        assert again.status == "fresh"

    async def test_a_bundle_that_is_ahead_of_the_others(self, reader: CountingReader) -> None:
        body = reader.bundles["1"].bundle
        assert body is not None and body.meta is not None
        meta = Meta("h", 3, {"nyc": SourceState(version_of(170, 7), 5)}, body.meta.fragments)
        plane = Stored(1, Meta("p", 3, {"fleet": SourceState(version_of(180, 7), 5)}), b'{"tail":"N1"}')
        reader.bundles["1"] = Fetched(Stored(2, meta, body.body), {("plane", "N1"): plane})
        answer = await service(reader).get("flight", "1")
        assert [position_of(token).value for token in answer.position.values()] == [170, 180]
        again = await service(reader).get("flight", "1", after(*answer.position.values(), budget_ms=SOON_MS))
        assert again.status == "stale" and len(again.not_reached) == 2

    async def test_a_missing_bundle_has_seen_something_too(self, reader: CountingReader) -> None:
        answer = await service(reader).get("flight", "2")
        assert (answer.status, position_of(answer.position["nyc"]).value) == ("missing", 99)

    async def test_write_times(self, reader: CountingReader) -> None:
        for number in (0, 1):
            reader.applied[PLANES, number] = AppliedPosition("fleet", 2, version_of(NOW_US, 0), NOW_US)
        answer = await service(reader).get("flight", "2")
        token = token_of(SourcePosition("fleet", "time", NOW_US - CLOCKS_DIFFER_US - 1))
        assert answer.position["fleet"] == token
        again = await service(reader).get("flight", "1", after(token, budget_ms=SOON_MS))
        assert again.status == "fresh"


async def test_many_that_wait_read_together(reader: CountingReader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(applied_watch, "POLL_S", 0.01)
    lookups = service(reader)
    wanted = [after(token_of_lsn("nyc", 150 + number % 7), budget_ms=20_000) for number in range(300)]
    answering = [asyncio.create_task(lookups.get("flight", "1", one)) for one in wanted]
    await asyncio.sleep(0.1)
    reader.advance(200)
    assert {answer.status for answer in await asyncio.gather(*answering)} == {"fresh"}
    assert reader.read < 300
    reader.read = 0
    await asyncio.sleep(0.05)
    assert reader.read <= 1, "nobody waits, nobody reads"


async def test_who_gives_up_leaves_nothing_behind(reader: CountingReader) -> None:
    lookups = service(reader)
    answering = asyncio.create_task(lookups.get("flight", "1", after(token_of_lsn("nyc", 150), budget_ms=60_000)))
    await asyncio.sleep(0.02)
    answering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await answering
    context = lookups.served("flight")
    assert context.queries == 0 and not context.watch._waiting


class TestSearch:
    """A search needs the position in the bundles, and then all that those led to in the index."""

    @pytest.fixture
    async def world(self) -> AsyncIterator[SearchWorld]:
        made = SearchWorld()
        made.put("1", {"name": "wide body jet", "maker": "Boeing", "year": 1988})

        async def read_applied() -> dict[Partition, AppliedPosition]:
            return {(PLANES, 0): AppliedPosition("fleet", 1, version_of(100, 100), made.clock.now_us(), SYSTEM)}

        made.bundles.read_applied = read_applied  # type: ignore[method-assign]
        yield made
        made.service.close()

    async def search(self, world: SearchWorld, lsn: int, **asked: Any) -> SearchAnswer:
        token = token_of_lsn("fleet", lsn)
        return await world.service.search("plane", SearchRequest(text="jet", position=(token,), **asked))

    async def test_reached_in_both(self, world: SearchWorld) -> None:
        world.replica.holds = True
        answer = await self.search(world, 50)
        assert [hit.answer.status for hit in answer.hits] == ["fresh"] and not answer.not_reached
        assert "not_reached" not in json.loads(answer.to_json())

    async def test_vectors_may_be_on_their_way(self, world: SearchWorld) -> None:
        answer = await self.search(world, 50)
        assert [hit.answer.status for hit in answer.hits] == ["fresh"], "the bundles are there"
        (missing,) = json.loads(answer.to_json())["not_reached"]
        assert missing["source"] == "fleet" and "on their way to the index" in missing["reason"]

    async def test_not_in_the_bundles(self, world: SearchWorld) -> None:
        world.replica.holds = True
        answer = await self.search(world, 150, budget_ms=300)
        assert [hit.answer.status for hit in answer.hits] == ["stale"]
        assert answer.not_reached == answer.hits[0].answer.not_reached and answer.not_reached

    async def test_over_http(self, world: SearchWorld) -> None:
        world.replica.holds = True
        transport = httpx.ASGITransport(http.make_app(world.lookups, world.service))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            for position, status in ((token_of_lsn("fleet", 50), 200), ([token_of_lsn("fleet", 50)], 200), (7, 400)):
                body = {"text": "jet", "position": position}
                assert (await client.post("/v1/contexts/plane:search", json=body)).status_code == status
            for token in ("nonsense", token_of_lsn("other", 5), token_of_lsn("fleet", 50, "1")):
                answer = await client.post("/v1/contexts/plane:search", json={"text": "jet", "position": token})
                assert answer.status_code == 400 and "position" in answer.json()["detail"]
            many = {"text": "jet", "position": ["x"] * 17}
            assert (await client.post("/v1/contexts/plane:search", json=many)).status_code == 400
