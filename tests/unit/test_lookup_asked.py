"""Lookups with options, through the service and over HTTP: parts, ages, budgets, conditional reads."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from pipeline.core.errors import Retryable
from pipeline.lookup import http
from pipeline.lookup.options import BadOptions, LookupOptions
from pipeline.lookup.served import ServedContext
from pipeline.lookup.service import LookupService
from pipeline.stores.store import Fetched
from schemas.context import ContextSpec
from tests.unit.test_lookup import EMPTY, FixedClock, MemoryReader, position, stored

SPEC = {
    "context": "flight",
    "version": 3,
    "root": "flight",
    "entities": {
        "flight": {"source": "nyc", "table": "public.flights", "key": ["id"]},
        "plane": {"source": "fleet", "table": "public.planes", "key": ["tail"]},
    },
    "fields": ["id", "gate"],
    "sections": {"plane": {"entity": "plane", "on": {"tail": "tail"}, "fields": ["tail", "year"]}},
    "serving": {"budget_ms": 200, "max_age_ms": 1000, "default": {"id": None}},
}
BODY = b'{"id":1,"gate":"B4","plane":{"tail":"N1","year":1990}}'


@pytest.fixture
def reader() -> MemoryReader:
    made = MemoryReader()
    made.bundles["1"] = Fetched(stored(BODY), {})
    made.applied = {("a", 0): position("nyc", 400), ("b", 0): position("fleet", 700)}
    return made


@pytest.fixture
def service(reader: MemoryReader) -> LookupService:
    return LookupService({"flight": ServedContext(ContextSpec.model_validate(SPEC), reader, EMPTY)}, FixedClock())


@pytest.fixture
async def client(service: LookupService) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=http.make_app(service), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://lookup") as made:
        yield made


async def test_a_section_is_as_old_as_its_sources(service: LookupService) -> None:
    answer = await service.get("flight", "1")
    shown = json.loads(answer.to_json())
    assert shown["sections"] == {"plane": {"as_of": shown["as_of"]["fleet"]}}


@pytest.mark.parametrize(("max_age_ms", "status"), [(700, "fresh"), (699, "stale"), (0, "stale"), (None, "fresh")])
async def test_the_caller_says_what_is_too_old(service: LookupService, max_age_ms: float | None, status: str) -> None:
    assert (await service.get("flight", "1", LookupOptions(max_age_ms=max_age_ms))).status == status


async def test_parts_have_a_hash_of_their_own_and_say_what_is_missing(service: LookupService) -> None:
    whole = await service.get("flight", "1")
    part = await service.get("flight", "1", LookupOptions(fields=("gate",)))
    assert part.bundle == b'{"gate":"B4"}' and part.left_out == {"plane": "not asked for"} and part.sections == {}
    assert part.hash != whole.hash
    missing = await service.get("flight", "2", LookupOptions(fields=("gate",)))
    assert (missing.status, missing.bundle) == ("fallback", b'{"id":null}')
    with pytest.raises(BadOptions, match="did you mean gate"):
        await service.get("flight", "1", LookupOptions(fields=("gates",)))


async def test_sections_go_until_the_rest_fits(service: LookupService) -> None:
    whole = await service.get("flight", "1", LookupOptions(token_budget=1000))
    assert whole.bundle == BODY and whole.left_out == {} and whole.tokens is not None
    cut = await service.get("flight", "1", LookupOptions(token_budget=whole.tokens - 1))
    assert cut.bundle == b'{"id":1,"gate":"B4"}' and cut.left_out == {"plane": "token budget"} and cut.sections == {}
    assert cut.tokens is not None and cut.tokens < whole.tokens
    assert json.loads(cut.to_json())["tokens"] == cut.tokens
    least = await service.get("flight", "1", LookupOptions(token_budget=1))
    assert least.bundle == cut.bundle and least.tokens == cut.tokens, "plain fields stay, and the count says so"


async def test_the_callers_budget_counts(service: LookupService, reader: MemoryReader) -> None:
    reader.hangs = True
    answer = await service.get("flight", "1", LookupOptions(budget_ms=5))
    assert answer.status == "fallback"


async def test_options_over_http(client: httpx.AsyncClient) -> None:
    response = await client.get("/v1/contexts/flight/1?fields=id&max_age_ms=100", headers={"grpc-timeout": "150m"})
    found = response.json()
    assert (found["bundle"], found["status"]) == ({"id": 1}, "stale")
    assert (response.headers["x-context-status"], response.headers["x-context-age-ms"]) == ("stale", "700")
    batch = await client.post("/v1/contexts/flight:batchGet?sections=plane", json={"keys": ["1"]})
    assert batch.json()["answers"][0]["left_out"] == []


@pytest.mark.parametrize(
    ("path", "headers", "told"),
    [
        ("/v1/contexts/flight/1?budget_ms=0", {}, "a budget is 1 to 60,000 milliseconds"),
        ("/v1/contexts/flight/1", {"x-request-timeout-ms": "31536000000"}, "a budget is 1 to 60,000 milliseconds"),
        ("/v1/contexts/flight/1?fields=gat", {}, "did you mean gate?"),
        ("/v1/contexts/flight/1?feilds=gate", {}, "did you mean fields?"),
    ],
)
async def test_what_cannot_be_asked(client: httpx.AsyncClient, path: str, headers: dict[str, str], told: str) -> None:
    response = await client.get(path, headers=headers)
    assert response.status_code == 400 and told in response.json()["detail"]
    assert response.headers["content-type"] == "application/problem+json"


async def test_bytes_that_the_caller_has_are_not_sent_again(client: httpx.AsyncClient, reader: MemoryReader) -> None:
    first = await client.get("/v1/contexts/flight/1")
    etag = first.headers["etag"]

    async def again(tag: str) -> tuple[int, bytes, Any]:
        response = await client.get("/v1/contexts/flight/1", headers={"if-none-match": tag})
        return response.status_code, response.content, response.headers["x-context-status"]

    assert await again(etag) == await again(f'"other", W/{etag}') == await again("*") == (304, b"", "fresh")
    assert (await again('"other"'))[0] == 200
    reader.bundles["1"] = Fetched(stored(BODY.replace(b"B4", b"B5")), {})
    assert (await again(etag))[0] == 200


async def test_a_large_batch_comes_line_by_line(client: httpx.AsyncClient, reader: MemoryReader) -> None:
    headers = {"accept": "application/x-ndjson"}
    keys = [str(number) for number in range(2100)]
    response = await client.post("/v1/contexts/flight:batchGet?fields=id", json={"keys": keys}, headers=headers)
    assert response.status_code == 200 and response.headers["content-type"].startswith("application/x-ndjson")
    answers = [json.loads(line) for line in response.text.splitlines()]
    assert [answer["key"] for answer in answers] == keys
    assert {answer["status"] for answer in answers} == {"fresh", "fallback"}
    plain = await client.post("/v1/contexts/flight:batchGet", json={"keys": keys})
    assert plain.status_code == 400 and "at most 1,000" in plain.json()["detail"]
    for wrong, told in (({"keys": ["1", "a|b"]}, "has 1 part"), ({"keys": ["1"] * 100_001}, "at most 100,000")):
        response = await client.post("/v1/contexts/flight:batchGet", json=wrong, headers=headers)
        assert response.status_code == 400 and told in response.json()["detail"]
    assert (await client.post("/v1/contexts/flight:batchGet", json={"keys": []}, headers=headers)).text == ""


async def test_a_store_that_fails_in_the_middle_of_a_stream_is_told(
    service: LookupService, reader: MemoryReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = service.served("flight")
    served.spec = served.spec.model_copy(update={"serving": served.spec.serving.model_copy(update={"default": None})})
    fetch, calls = reader.fetch, []

    async def failing(keys: Any) -> Any:
        calls.append(keys)
        if len(calls) == 2:
            raise Retryable("Redis is away")
        return await fetch(keys)

    monkeypatch.setattr(reader, "fetch", failing)
    transport = httpx.ASGITransport(app=http.make_app(service), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://lookup") as client:
        response = await client.post(
            "/v1/contexts/flight:batchGet",
            json={"keys": [str(number) for number in range(600)]},
            headers={"accept": "application/x-ndjson"},
        )
    lines = [json.loads(line) for line in response.text.splitlines()]
    assert len(lines) == 251 and lines[-1]["error"]["status"] == 503
