"""Refusals over HTTP: what a client is told that can't be answered in time, on every way to bundles."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

import httpx
import pytest

from pipeline.core.errors import Retryable
from pipeline.lookup.admission import Admission, Refusal, Ticket
from pipeline.lookup.http import make_app
from schemas.position import token_of_lsn
from tests.unit.test_lookup import MemoryReader, service
from tests.unit.test_lookup import reader as reader

LOOKUP, BATCH = "/v1/contexts/flight/1", "/v1/contexts/flight:batchGet"


class Counting(Admission):
    """Refuses when told to; knows who was let in and who left."""

    def __init__(self) -> None:
        super().__init__(100, time.monotonic)
        self.refusal: Refusal | None = None
        self.asked: list[tuple[str | None, float, int]] = []
        self.ended: list[bool] = []

    def admit(self, tenant: str | None, left_ms: float, keys: int = 1) -> Ticket | Refusal:
        self.asked.append((tenant, left_ms, keys))
        return self.refusal or super().admit(tenant, left_ms, keys)

    def done(self, ticket: Ticket, typical: bool = True) -> None:
        self.ended.append(typical)
        super().done(ticket, typical)


@pytest.fixture
def admission() -> Counting:
    return Counting()


@pytest.fixture
async def client(reader: MemoryReader, admission: Counting) -> AsyncIterator[httpx.AsyncClient]:
    app = make_app(service(reader), admission=admission)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here") as made:
        yield made


async def test_who_is_let_in_leaves_again(client: httpx.AsyncClient, admission: Counting, reader: MemoryReader) -> None:
    assert (await client.get(LOOKUP, params={"budget_ms": 30})).status_code == 200
    assert (await client.post(BATCH, json={"keys": ["1", "2"]})).status_code == 200
    assert admission.asked == [(None, 30, 1), (None, 200, 2)] and admission.ended == [True, True]
    waited = {"position": token_of_lsn("nyc", "0/1"), "budget_ms": 20}
    assert (await client.get(LOOKUP, params=waited)).json()["not_reached"]
    assert admission.ended.pop() is False, "a wait for a position is not the server's load"
    reader.error = Retryable("away")
    assert (await client.get(LOOKUP)).status_code == 503
    assert (await client.get("/v1/contexts/flight/", params={"budget_ms": 30})).status_code == 400
    assert (await client.get("/v1/contexts/none/1")).status_code == 404
    assert admission.in_flight == 0 and admission.ended[2:].count(True) == 0


@pytest.mark.parametrize(
    ("reason", "told"),
    [("overload", "as much to do"), ("too late", "left of the budget"), ("tenant share", "more on its way")],
)
async def test_who_is_refused_is_told_why_and_when_to_come_back(
    client: httpx.AsyncClient, admission: Counting, reason: str, told: str
) -> None:
    admission.refusal = Refusal(reason, 1.2)  # type: ignore[arg-type]
    streamed = {"accept": "application/x-ndjson"}
    for answer in (
        await client.get(LOOKUP),
        await client.post(BATCH, json={"keys": ["1"]}),
        await client.post(BATCH, json={"keys": ["1"]}, headers=streamed),
    ):
        assert answer.status_code == 503 and answer.headers["content-type"] == "application/problem+json"
        assert (answer.headers["retry-after"], answer.json()["reason"]) == ("2", reason)
        assert told in answer.json()["detail"] and answer.headers["x-content-type-options"] == "nosniff"
    assert admission.ended == []
