"""Probes of the servers that answer lookups: what a store that is away changes, and when indexes count as loaded."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from pipeline.core.errors import Retryable
from pipeline.core.health import Health
from pipeline.lookup.caught_up import PATIENCE_S, CaughtUp
from pipeline.lookup.http import make_app
from pipeline.lookup.http_health import ProbedApplication, Probes
from pipeline.lookup.ladder import Rungs
from pipeline.lookup.served import ServedContext
from pipeline.lookup.service import LookupService
from pipeline.lookup.spaces import OPENING
from tests.support.search_world import SearchWorld
from tests.unit.test_lookup import FixedClock, MemoryReader, spec


def asking(app: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://lookup")


class Known(dict[str, Any]):
    """What was last known."""

    note = forget = None


Broken = Callable[[ServedContext], None]


def known(served: ServedContext) -> None:
    served.rungs.last_known = Known(a=1)


def replicated(served: ServedContext) -> None:
    served.rungs.replica_applied = MemoryReader()


@pytest.mark.parametrize(
    ("what", "source"), [(known, "what was last known"), (replicated, "the replica"), (None, "the default bundle")]
)
async def test_a_store_that_is_away_unreadies_nobody_who_has_an_answer(what: Broken | None, source: str) -> None:
    reader, bare = MemoryReader(), MemoryReader()
    served = ServedContext(spec(default=None if what else {"id": None}), reader, {}, rungs=Rungs())
    if what is not None:
        what(served)
    other = ServedContext(spec("hour"), bare, {}, rungs=Rungs())
    service = LookupService({"flight": served, "hour": other}, FixedClock())
    async with asking(make_app(service)) as client:
        assert (await client.get("/readyz")).json() == {"status": "ok"}
        reader.error = bare.error = Retryable("Redis does not answer")
        assert (await client.get("/readyz")).status_code == 200
        told = (await client.get("/readyz?verbose")).text
        assert f"[~]flight degraded: Redis does not answer; answers come from {source}" in told
        assert "[~]hour degraded: Redis does not answer\n" in told, "who can answer some goes on with those"


async def test_a_server_without_any_answer_steps_back(caplog: pytest.LogCaptureFixture) -> None:
    reader, health = MemoryReader(), Health("serve")
    service = LookupService({"flight": ServedContext(spec(), reader, {}, rungs=Rungs())}, FixedClock())
    async with asking(make_app(service, health=health)) as client:
        assert (await client.get("/startupz")).status_code == (await client.get("/readyz")).status_code == 503
        health.started()
        assert (await client.get("/startupz")).status_code == (await client.get("/readyz")).status_code == 200
        reader.error = Retryable("Redis does not answer")
        for _ in range(3):
            assert "not ready: flight;" in (await client.get("/readyz")).json()["detail"]
        assert caplog.text.count("Redis does not answer") == 1, "told when it changes"
        assert (await client.get("/livez?verbose")).text == "livez check passed\n"
        reader.error = None
        health.stopping()
        gone = await client.get("/readyz?verbose")
        assert gone.status_code == 503 and "[-]taking work failed: serve is stopping" in gone.text
        assert (await client.get("/livez")).status_code == 200


async def test_guarded_servers_give_no_reasons_and_others_get_probes_in_front() -> None:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 401, "headers": []})
        await send({"type": "http.response.body"})

    reader = MemoryReader()
    reader.error = Retryable("Redis at inside:6379 does not answer")
    service = LookupService({"flight": ServedContext(spec(), reader, {}, rungs=Rungs())}, FixedClock())
    async with asking(ProbedApplication(application, Probes(None, service, guarded=True))) as client:
        assert (await client.get("/mcp")).status_code == 401
        assert (await client.get("/livez")).status_code == 200
        for path in ("/readyz", "/readyz?verbose"):
            shown = await client.get(path)
            assert shown.status_code == 503 and "inside" not in shown.text and "flight" not in shown.text


def test_indexes_are_waited_for_once_and_a_missing_kafka_for_a_while() -> None:
    world, now = SearchWorld(), SimpleNamespace(s=0.0)
    keeper: Any = SimpleNamespace(looked=False, serving=world.serving)
    space, replica = world.open, world.replica
    engine, space.embedder, space.engine_problem = space.embedder, None, OPENING
    replica.vectors_loaded, replica.problem = False, "Kafka does not answer"

    def fresh() -> CaughtUp:
        return CaughtUp(world.lookups, keeper, lambda: now.s)

    check = fresh()
    assert "looked for" in check()
    keeper.looked = True
    assert "Kafka does not answer" in check()
    now.s = PATIENCE_S + 1
    assert check() == "", "lookups are answered without Kafka"
    replica.problem = ""
    assert check() == "", "once is enough"
    check = fresh()
    now.s += PATIENCE_S + 1
    assert "is being read" in check(), "as long as it gets on"
    replica.vectors_loaded = True
    assert "engine is being opened" in check()
    space.engine_problem = "the embedding engine cannot be opened; see the server's log"
    assert check() == "", "searches by words need none"
    space.embedder, world.current = engine, None
    assert fresh()() == "", "nothing serves yet: there is nothing to wait for"
    world.service.close()
