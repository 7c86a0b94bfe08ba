"""The lookup service over readers in memory: composition, labels, ages, degradation; and its HTTP face."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import httpx
import pytest

from pipeline.core.errors import EnvironmentProblem, Retryable
from pipeline.lookup import http
from pipeline.lookup.answer import iso_time
from pipeline.lookup.keys import MalformedKey
from pipeline.lookup.served import ServedContext
from pipeline.lookup.service import LookupService, LookupUnavailable, UnknownContext
from pipeline.splicing import splice
from pipeline.stores.store import AppliedPosition, Fetched, Partition
from schemas.bundle import FragmentReference, Meta, Stored
from schemas.context import ContextSpec

NOW_US = 1_767_323_045_678_901


def spec(
    name: str = "flight", key: Sequence[str] = ("id",), types: dict[str, str] | None = None, **serving: Any
) -> ContextSpec:
    entities = {
        "flight": {"source": "nyc", "table": "public.flights", "key": list(key), "types": types or {}},
        "plane": {"source": "fleet", "table": "public.planes", "key": ["tail"]},
    }
    made = {"context": name, "version": 3, "root": "flight", "entities": entities, "fields": ["id"]}
    return ContextSpec.model_validate({**made, "serving": {"budget_ms": 200, "max_age_ms": 1000, **serving}})


class FixedClock:
    def __init__(self) -> None:
        self.now = NOW_US

    def now_us(self) -> int:
        return self.now

    def monotonic_s(self) -> float:
        return self.now / 1e6

    async def sleep(self, duration_s: float) -> None:
        raise AssertionError("lookups do not sleep")


class MemoryReader:
    def __init__(self) -> None:
        self.bundles: dict[str, Fetched] = {}
        self.applied: dict[Partition, AppliedPosition] = {}
        self.error: Exception | None = None
        self.hangs = False

    async def fetch(self, keys: Sequence[str]) -> list[Fetched]:
        await self._trouble()
        return [self.bundles.get(key, Fetched(None, {})) for key in keys]

    async def read_applied(self) -> dict[Partition, AppliedPosition]:
        await self._trouble()
        return self.applied

    async def _trouble(self) -> None:
        if self.hangs:
            await asyncio.Event().wait()
        if self.error is not None:
            raise self.error


def stored(body: bytes, *references: FragmentReference) -> Stored:
    return Stored(1, Meta("h", 3, {}, list(references)), body)


def position(source: str, age_ms: int) -> AppliedPosition:
    return AppliedPosition(source, 1, "", NOW_US - age_ms * 1000)


@pytest.fixture
def reader() -> MemoryReader:
    made = MemoryReader()
    body = b'{"id":1,"plane":,"airline":}'
    references = (FragmentReference(16, "plane", "N1"), FragmentReference(27, "airline", None))
    made.bundles["1"] = Fetched(stored(body, *references), {("plane", "N1"): stored(b'{"tail":"N1"}')})
    made.applied = {("a", 0): position("nyc", 10), ("a", 1): position("nyc", 20), ("b", 0): position("fleet", 5)}
    return made


EMPTY = {"plane": b"null", "airline": b"[]"}


def service(reader: MemoryReader, **serving: Any) -> LookupService:
    return LookupService({"flight": ServedContext(spec(**serving), reader, EMPTY)}, FixedClock())


def test_fragments_go_in_at_their_offsets() -> None:
    body = b'{"a":,"b":,"c":,"d":}'
    references = [
        FragmentReference(5, "x", "1"),
        FragmentReference(10, "x", "2"),
        FragmentReference(15, "y", None),
        FragmentReference(20, "x", "3"),
    ]
    fragments = {("x", "1"): stored(b'{"n":1}'), ("x", "3"): Stored(2, None, b"")}
    final = splice(body, references, fragments, {"x": b"null", "y": b"[]"})
    assert final == b'{"a":{"n":1},"b":null,"c":[],"d":null}'
    assert splice(b"{}", [], {}, {}) == b"{}"


async def test_an_answer_says_what_is_known(reader: MemoryReader) -> None:
    answer = await service(reader).get("flight", "1")
    assert answer.bundle == b'{"id":1,"plane":{"tail":"N1"},"airline":[]}'
    assert (answer.status, answer.spec_version) == ("fresh", 3)
    assert answer.as_of_us == {"nyc": NOW_US - 20_000, "fleet": NOW_US - 5_000}
    assert answer.age_ms == {"nyc": 20.0, "fleet": 5.0}
    assert json.loads(answer.to_json()) == {
        "context": "flight",
        "key": "1",
        "status": "fresh",
        "as_of": {"nyc": "2026-01-02T03:04:05.658901Z", "fleet": "2026-01-02T03:04:05.673901Z"},
        "age_ms": {"nyc": 20.0, "fleet": 5.0},
        "spec_version": 3,
        "hash": answer.hash,
        "sections": {},
        "left_out": [],
        "rung": "store",
        "bundle": {"id": 1, "plane": {"tail": "N1"}, "airline": []},
    }


async def test_the_hash_follows_the_fragments(reader: MemoryReader) -> None:
    before = await service(reader).get("flight", "1")
    reader.bundles["1"].fragments["plane", "N1"] = stored(b'{"tail":"N2"}')
    after = await service(reader).get("flight", "1")
    assert before.hash != after.hash and after.hash is not None and len(after.hash) == 32


@pytest.mark.parametrize(
    ("applied", "status"),
    [
        ({("a", 0): position("nyc", 1000), ("b", 0): position("fleet", 0)}, "fresh"),
        ({("a", 0): position("nyc", 1001), ("b", 0): position("fleet", 0)}, "stale"),
        ({("a", 0): position("nyc", 0), ("a", 1): position("nyc", 5000), ("b", 0): position("fleet", 0)}, "stale"),
        ({("a", 0): position("nyc", 0)}, "stale"),
        ({("a", 0): position("nyc", -50), ("b", 0): position("fleet", 0)}, "fresh"),
    ],
    ids=["at the limit", "over it", "the slowest partition counts", "an unknown source is stale", "clocks that differ"],
)
async def test_stale_means_older_than_the_spec_allows(
    reader: MemoryReader, applied: dict[Partition, AppliedPosition], status: str
) -> None:
    reader.applied = applied
    answer = await service(reader).get("flight", "1")
    assert answer.status == status
    assert all(age is None or age >= 0 for age in answer.age_ms.values())


async def test_a_partition_that_has_seen_no_time_makes_its_source_unknown_and_not_half_a_century_old(
    reader: MemoryReader,
) -> None:
    reader.applied["a", 2] = AppliedPosition("nyc", 7, "", 0)
    answer = await service(reader).get("flight", "1")
    assert answer.status == "stale"
    assert answer.age_ms["nyc"] is None and answer.as_of_us["nyc"] is None and answer.age_ms["fleet"] == 5


async def test_positions_are_read_before_bundles_and_kept_for_a_moment(reader: MemoryReader) -> None:
    order: list[str] = []
    fetch, read_applied = reader.fetch, reader.read_applied

    async def noted_fetch(keys: Sequence[str]) -> list[Fetched]:
        order.append("fetch")
        return await fetch(keys)

    async def noted_applied() -> dict[Partition, AppliedPosition]:
        order.append("applied")
        return await read_applied()

    reader.fetch, reader.read_applied = noted_fetch, noted_applied  # type: ignore[method-assign]
    clock = FixedClock()
    made = LookupService({"flight": ServedContext(spec(), reader, EMPTY)}, clock)
    await made.get("flight", "1")
    await made.get("flight", "1")
    clock.now += 150_000
    await made.get("flight", "1")
    assert order == ["applied", "fetch", "fetch", "applied", "fetch"]


async def test_missing_and_fallback_are_labelled(reader: MemoryReader) -> None:
    missing = await service(reader).get("flight", "2")
    assert (missing.status, missing.bundle, missing.hash) == ("missing", None, None)
    fallback = await service(reader, default={"id": None}).get("flight", "2")
    assert (fallback.status, fallback.bundle) == ("fallback", b'{"id":null}')
    assert fallback.age_ms["nyc"] == 20.0


@pytest.mark.parametrize("hangs", [True, False], ids=["a store that hangs", "a store that refuses"])
async def test_without_the_store_there_is_a_labelled_default_or_a_refusal(reader: MemoryReader, hangs: bool) -> None:
    reader.hangs, reader.error = hangs, Retryable("Redis does not answer: refused")
    answers = await service(reader, default={"id": None}).get_many("flight", ["1", "2"])
    assert [(a.status, a.bundle, a.as_of_us) for a in answers] == [
        ("fallback", b'{"id":null}', {"nyc": None, "fleet": None})
    ] * 2
    with pytest.raises(LookupUnavailable, match="within 20 ms" if hangs else "refused"):
        await service(reader, budget_ms=20).get("flight", "1")


@pytest.mark.parametrize("key", ["", "1|2", "x" * 1025, "a\x00", "\ud800"])
async def test_a_malformed_key_is_refused(reader: MemoryReader, key: str) -> None:
    with pytest.raises(MalformedKey):
        await service(reader).get("flight", key)


async def test_an_escaped_bar_is_part_of_a_key(reader: MemoryReader) -> None:
    reader.bundles["a%7Cb"] = Fetched(stored(b'{"id":"a|b"}'), {})
    assert (await service(reader).get("flight", "a%7Cb")).bundle == b'{"id":"a|b"}'


async def test_a_decimal_key_is_found_in_any_spelling(reader: MemoryReader) -> None:
    answer = await service(reader, types={"id": "decimal"}).get("flight", "1.00")
    assert (answer.status, answer.key) == ("fresh", "1.00")
    assert (await service(reader).get("flight", "1.00")).status == "missing"


async def test_other_mistakes_of_a_caller_are_refused(reader: MemoryReader) -> None:
    with pytest.raises(UnknownContext):
        await service(reader).get("boat", "1")
    with pytest.raises(MalformedKey, match="1,001 keys"):
        await service(reader).get_many("flight", ["1"] * 1001)


def test_times_are_iso() -> None:
    assert iso_time(0) == "1970-01-01T00:00:00.000000Z"
    assert iso_time(None) is None


@pytest.fixture
async def client(reader: MemoryReader) -> AsyncIterator[httpx.AsyncClient]:
    composite = ServedContext(spec("hour", key=["origin", "time"]), reader, EMPTY)
    served = {"flight": ServedContext(spec(), reader, EMPTY), "hour": composite}
    app = http.make_app(LookupService(served, FixedClock()))
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://lookup") as made:
        yield made


def problem(response: httpx.Response, status: int) -> str:
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert body["status"] == status and body["title"]
    assert "Traceback" not in response.text and 'File "' not in response.text
    return str(body["detail"])


async def test_http_answers_one_key(client: httpx.AsyncClient, reader: MemoryReader) -> None:
    response = await client.get("/v1/contexts/flight/1")
    assert response.status_code == 200 and response.headers["content-type"] == "application/json"
    assert b'"bundle":{"id":1,"plane":{"tail":"N1"},"airline":[]}}' in response.content
    missing = await client.get("/v1/contexts/flight/2")
    assert (missing.status_code, missing.json()["status"]) == (404, "missing")
    reader.bundles["EWR|a/b%7C"] = Fetched(stored(b'{"id":7}'), {})
    composite = await client.get("/v1/contexts/hour/EWR%7Ca%2Fb%257C")
    assert composite.json()["bundle"] == {"id": 7}


async def test_http_answers_many_keys(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/contexts/flight:batchGet", json={"keys": ["1", "2", "1"]})
    assert response.status_code == 200
    assert [item["status"] for item in response.json()["answers"]] == ["fresh", "missing", "fresh"]
    empty = await client.post("/v1/contexts/flight:batchGet", json={"keys": []})
    assert empty.json() == {"answers": []}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[]", 400),
        (b'{"keys":"1"}', 400),
        (b'{"keys":[1]}', 400),
        (b'{"keys":[],"x":1}', 400),
        (b'{"keys":["\xff\xfe"]}', 400),
        (b'{"keys":["\\ud800"]}', 400),
        (b'{"keys":[""]}', 400),
        (b"[" * 100_000, 400),
        (b'{"keys":[%b]}' % b",".join([b'"1"'] * 1001), 400),
        (b" " * (http.BODY_BYTES_MAX + 1), 413),
    ],
)
async def test_http_refuses_bad_batches(client: httpx.AsyncClient, body: bytes, status: int) -> None:
    problem(await client.post("/v1/contexts/flight:batchGet", content=body), status)


async def test_http_limits_a_body_that_does_not_say_its_length(client: httpx.AsyncClient) -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b" " * 65536

    problem(await client.post("/v1/contexts/flight:batchGet", content=endless()), 413)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/contexts/boat/1", 404),
        ("/v1/contexts/flight/" + "x" * 1025, 400),
        ("/v1/contexts/flight/a%00b", 400),
        ("/v1/contexts/flight/", 400),
        ("/v1/contexts/hour/EWR", 400),
        ("/nothing", 404),
    ],
)
async def test_http_refuses_bad_paths(client: httpx.AsyncClient, path: str, status: int) -> None:
    problem(await client.get(path), status)


async def test_http_refuses_other_methods(client: httpx.AsyncClient) -> None:
    problem(await client.delete("/v1/contexts/flight/1"), 405)


@pytest.mark.parametrize(
    ("error", "status"),
    [(Retryable("secret address"), 503), (EnvironmentProblem("secret address"), 503), (KeyError("secret"), 500)],
)
async def test_http_tells_troubles_without_details(
    client: httpx.AsyncClient, reader: MemoryReader, error: Exception, status: int
) -> None:
    reader.error = error
    assert "secret" not in problem(await client.get("/v1/contexts/flight/1"), status)


async def test_http_tells_whether_it_is_alive_and_ready(client: httpx.AsyncClient, reader: MemoryReader) -> None:
    assert (await client.get("/livez")).status_code == 200
    assert (await client.get("/readyz")).status_code == 200
    reader.error = Retryable("Redis does not answer")
    assert "not ready: flight, hour" in problem(await client.get("/readyz"), 503)
    assert (await client.get("/livez")).status_code == 200


async def test_http_lists_contexts_and_counts_answers(client: httpx.AsyncClient) -> None:
    listed = (await client.get("/v1/contexts")).json()["contexts"]
    assert [(item["context"], item["key"]) for item in listed] == [("flight", ["id"]), ("hour", ["origin", "time"])]

    async def counted() -> list[float]:
        lines = (await client.get("/metrics")).text.splitlines()
        names = (
            'ctxpipe_lookup_answers_total{context="flight",status="fresh"} ',
            'ctxpipe_lookup_seconds_count{operation="get"} ',
        )
        return [sum(float(line.removeprefix(name)) for line in lines if line.startswith(name)) for name in names]

    before = await counted()
    await client.get("/v1/contexts/flight/1")
    assert await counted() == [number + 1 for number in before]
