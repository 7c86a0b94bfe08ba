"""The client answers the same over HTTP and straight from Redis, for coroutines and for threads."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest

from deploy.local.redis import RedisServer
from pipeline.client import (
    AsyncClient,
    BadRequest,
    Bundle,
    Client,
    ClientError,
    DeadlineExceeded,
    NotAllowed,
    NotOffered,
    Unavailable,
)
from pipeline.client.credential import credential_headers
from pipeline.client.errors import UnknownContext
from pipeline.client.mirror import BLOCKING, blocking_source, formatted
from pipeline.core.errors import ConfigError
from schemas.bundle import ROOT_UNIT, Meta, Stored, UnitKey
from schemas.context import ContextSpec
from tests.support.certificates import make_authority
from tests.support.cli import ctxpipe
from tests.support.client_world import (
    CLUSTER,
    FLIGHT,
    LATER_LSN,
    REACHED_LSN,
    WEIRD_KEYS,
    ClientWorld,
    client_world,
    put_flight,
    served,
)
from tests.support.eventually import eventually, eventually_sync

pytestmark = [pytest.mark.servers, pytest.mark.timeout(120)]

REACHED = AsyncClient.position("nyc", lsn=REACHED_LSN - 1, cluster=CLUSTER)
LATER = AsyncClient.position("nyc", lsn=LATER_LSN)
FOREIGN = AsyncClient.position("nyc", lsn=5, cluster="99")
OTHER_KIND = AsyncClient.position("nyc", write_time=5)
UNKNOWN_SOURCE = AsyncClient.position("ncy", lsn=5)

# context, key, options: what is asked one at a time and in a batch of one.
ASKED: list[tuple[Any, Any, dict[str, Any]]] = [
    ("flight", "1", {}),
    ("flight", "2", {}),
    ("flight", "3", {}),
    ("flight", "99", {}),
    *[("flight", key, {}) for key in WEIRD_KEYS],
    ("seat", "1|A", {}),
    ("seat", "1|B", {"max_age_ms": 31_536_000_000}),
    ("seat", "1%7C2|C%25", {}),
    ("seat", "9|Z", {}),
    ("seat", "9", {}),
    ("seat", "1|2|3", {}),
    ("flight", "", {}),
    ("flight", "a|b", {}),
    ("flight", "a\x00b", {}),
    ("flight", "a\ud800b", {}),
    ("flight", "x" * 1025, {}),
    ("flight", "ß" * 1024, {}),
    ("flight", 7, {}),
    ("flights", "1", {}),
    ("flight/1", "1", {}),
    ("", "1", {}),
    ("flight", "1", {"max_age_ms": 0}),
    ("flight", "1", {"token_budget": 1}),
    ("flight", "1", {"token_budget": 1_000}),
    ("flight", "1", {"fields": "gate"}),
    ("flight", "1", {"fields": ["gate", "plane.year"]}),
    ("flight", "1", {"sections": []}),
    ("flight", "1", {"sections": " plane , plane"}),
    ("flight", "99", {"sections": ["plane"]}),
    ("flight", "1", {"budget_ms": 2_500, "sections": ["plane"], "fields": ["id"], "token_budget": 900}),
    ("flight", "1", {"position": REACHED}),
    ("flight", "1", {"position": [REACHED, REACHED]}),
    ("flight", "1", {"position": {"nyc": REACHED}, "max_age_ms": 0}),
    ("flight", "1", {"position": LATER, "budget_ms": 1_500}),
    ("flight", "99", {"position": LATER, "budget_ms": 1_500}),
    ("seat", "9|Z", {"position": AsyncClient.position("old", lsn=LATER_LSN), "budget_ms": 1_500}),
    ("flight", "1", {"position": FOREIGN}),
    ("flight", "1", {"position": OTHER_KIND}),
    ("flight", "1", {"position": [UNKNOWN_SOURCE, "no token"]}),
    ("flight", "1", {"position": [REACHED] * 3 + [f"t{n}" for n in range(17)]}),
    ("flight", "1", {"budget_ms": 0, "max_age_ms": -1, "token_budget": 0}),
    ("flight", "1", {"budget_ms": 31_536_000_000}),
    ("flight", "1", {"budget_ms": "soon", "max_age_ms": float("nan"), "token_budget": 1.5, "fields": [7]}),
    ("flight", "1", {"budget_ms": True, "max_age_ms": 10**5_000, "token_budget": 10**5_000}),
    ("flight", "1", {"sections": ["plain"], "fields": ["gaet", "plane.yaer"]}),
    ("flight", "1", {"fields": [f"f{n}" for n in range(101)]}),
    ("flights", "1", {"budget_ms": 0}),
]
KEYS: list[tuple[str, Any]] = [
    ("flight", []),
    ("flight", ["1", "99", "1", "2", *WEIRD_KEYS]),
    ("flight", ["1", "a|b", ""]),
    ("flight", ["1"] * 1_001),
    ("flight", "12"),
    ("seat", ["1|A", "9|Z"]),
    ("nothing", ["1"]),
]


BUSY_MOMENTS = 5


@dataclass
class FourWays:
    """One client per way, in this order: over HTTP and direct for coroutines, over HTTP and direct for threads."""

    world: ClientWorld
    clients: list[Any] = field(default_factory=list)

    async def each(self, method: str, *given: Any, **options: Any) -> list[Any]:
        """Of a machine that is so busy that a process takes Redis for away, the answers of a better moment."""
        for _ in range(BUSY_MOMENTS):
            found = await self.each_now(method, *given, **options)
            if all(one == found[0] for one in found) and not is_away(found[0]):
                break
            await asyncio.sleep(0.2)
        return found

    async def each_now(self, method: str, *given: Any, **options: Any) -> list[Any]:
        return await asyncio.gather(*[outcome(client, method, *given, **options) for client in self.clients])


async def outcome(client: Any, method: str, *given: Any, **options: Any) -> Any:
    """What can be compared: the answer without what time does to it, or the error."""
    try:
        if isinstance(client, AsyncClient):
            return comparable(await getattr(client, method)(*given, **options))
        return comparable(await asyncio.to_thread(getattr(client, method), *given, **options))
    except ClientError as error:
        return (type(error), error.mistakes if isinstance(error, BadRequest) else str(error))


def is_away(found: Any) -> bool:
    return isinstance(found, tuple) and issubclass(found[0], Unavailable)


def comparable(found: Any) -> Any:
    if isinstance(found, list):
        return [comparable(one) for one in found]
    if isinstance(found, Bundle):
        assert set(found.age_ms) == set(found.as_of)
        return Bundle(msgspec.structs.replace(found.answer, age_ms={}, rung="store"))
    return found


@pytest.fixture
async def four(tmp_path: Path, redis_url: str) -> AsyncIterator[FourWays]:
    world = client_world(tmp_path, redis_url)
    await world.fill()
    async with serving_four(world) as ways:
        yield ways


@asynccontextmanager
async def serving_four(world: ClientWorld) -> AsyncIterator[FourWays]:
    ways = FourWays(world)
    async with served(world):
        ways.clients = [
            AsyncClient(world.url),
            AsyncClient.direct(world.redis_url, contexts=["seat", "flight"]),
            Client(world.url),
            Client.direct(config=world.config_path),
        ]
        try:
            yield ways
        finally:
            for client in ways.clients[:2]:
                await client.close()
            for client in ways.clients[2:]:
                await asyncio.to_thread(client.close)


def the_same(found: list[Any], what: Any) -> Any:
    assert all(one == found[0] for one in found), f"{what}\n" + "\n".join(map(repr_of, found))
    return found[0]


def repr_of(one: Any) -> str:
    return repr(one.answer) if isinstance(one, Bundle) else repr(one)


async def test_four_ways_give_one_answer(four: FourWays) -> None:
    told: list[Any] = []
    for context, key, options in ASKED:
        what = (context, key, options)
        one = the_same(await four.each("get", context, key, **options), what)
        batch = the_same(await four.each("get_many", context, [key], **options), what)
        assert [one] == batch or one == batch, "one key alone is answered as in a batch"
        told.append(one)
    for context, keys in KEYS:
        told.append(the_same(await four.each("get_many", context, keys), (context, keys)))
    # The suite compares something: every status that needs no outage, and every error of these calls, was there.
    bundles = [one for one in told if isinstance(one, Bundle)]
    assert {one.status for one in bundles} == {"fresh", "stale", "missing", "fallback"}
    assert {one[0] for one in told if isinstance(one, tuple)} == {BadRequest, UnknownContext}
    assert sum(bool(one.not_reached) for one in bundles) == 3
    assert max(len(one[1]) for one in told if isinstance(one, tuple) and one[0] is BadRequest) >= 4


async def test_what_a_bundle_tells(four: FourWays) -> None:
    for client in four.clients[:2]:
        bundle = await client.get("flight", "1")
        assert bundle.fresh and not bundle.missing and bundle.oldest_ms == 0
        assert bundle.data == {"id": 1, "gate": "B4", "plane": {"tail": "N1", "year": 1990}}
        assert bundle.raw == b'{"id":1,"gate":"B4","plane":{"tail":"N1","year":1990}}'
        assert set(bundle.as_of) == {"nyc", "fleet"} and set(bundle.sections) == {"plane"}
        assert bundle.text("gate {{ gate }}, built {{ plane.year }}") == "gate B4, built 1990"
        assert repr(bundle) == "<Bundle flight 1 fresh, 54 bytes>"
        seen = await client.get("flight", "1", position=bundle.position["nyc"], budget_ms=2_000)
        assert seen.fresh, "what an answer has seen is seen by the next"
        missing = await client.get("flight", "99")
        assert missing.missing and missing.data is None and missing.text("x") == "" and missing.hash is None
        odd = await client.get("flight", "3")
        assert odd.raw is not None and b"123456789012345678901234567890" in odd.raw and b"1e999" in odd.raw
        assert odd.data["gate"]["a"] == "?"


async def test_contexts_and_the_past(four: FourWays) -> None:
    listed = the_same(await four.each("contexts"), "contexts")
    assert [(one.context, one.version, one.key) for one in listed] == [
        ("flight", 3, ("id",)),
        ("seat", 1, ("flight", "seat")),
    ]
    bundle = the_same(await four.each("get", "flight", "1", fields=["gate"]), "id")
    assert bundle.id is not None
    past = the_same(await four.each("by_id", "flight", bundle.id), "past")
    assert (past.raw, past.hash, past.key) == (bundle.raw, bundle.hash, "1") and past.data == {"gate": "B4"}
    stores = await four.world.stores(FLIGHT)
    try:
        await put_flight(stores, "1", "Z9", 2_000)
    finally:
        await stores.close()
    for client in four.clients[:2]:
        await eventually(lambda asked=client: asked.get("flight", "1"), lambda seen: seen.data["gate"] == "Z9")
    assert the_same(await four.each("by_id", "flight", bundle.id), "after a change") == past
    assert the_same(await four.each("by_id", "seat", bundle.id), "of another context") is None
    for wrong in ("nonsense", "ß", "", "x" * 9_000):
        assert the_same(await four.each("by_id", "flight", wrong), wrong)[0] is BadRequest
    assert the_same(await four.each("by_id", "nothing", bundle.id), "unknown")[0] is UnknownContext


async def test_what_only_a_server_does(four: FourWays) -> None:
    http, direct = four.clients[:2]
    with pytest.raises(NotOffered, match="searches need a server"):
        await direct.search("flight", "a plane")
    with pytest.raises(BadRequest, match="declares no embedding"):
        await http.search("flight", "a plane")
    with pytest.raises(UnknownContext):
        await http.search("nothing", key="1")


async def test_a_new_version_takes_over_everywhere(four: FourWays) -> None:
    newer = {**FLIGHT, "version": 4, "fields": ["id"], "sections": {}}
    stores = await four.world.stores(newer)
    try:
        await stores.serving.remember(ContextSpec.model_validate(newer), {})
        await stores.bundles.put([(UnitKey(ROOT_UNIT, "1"), Stored(3_000, Meta("new", 4), b'{"id":1}'))])
        positions = await (old := await four.world.stores(FLIGHT)).reader.read_applied()
        await old.close()
        await stores.marks.write_applied(positions)
        assert the_same(await four.each("get", "flight", "1"), "before").spec_version == 3
        await stores.serving.promote(4)

        async def everywhere() -> list[Any]:
            return await four.each("get", "flight", "1")

        found = await eventually(everywhere, lambda seen: {one.spec_version for one in seen} == {4})
        assert the_same(found, "after").raw == b'{"id":1}'
        assert the_same(await four.each("get", "flight", "1", fields=["gate"]), "gone")[0] is BadRequest
    finally:
        await stores.close()


async def test_redis_away_is_told_alike(make_redis: Callable[..., RedisServer], tmp_path: Path) -> None:
    redis = make_redis()
    world = client_world(tmp_path, redis.address)
    await world.fill()
    async with serving_four(world) as four:
        assert the_same(await four.each("get", "flight", "1"), "there").fresh
        redis.pause()
        for _ in range(2):
            found = await four.each("get", "seat", "1|A", budget_ms=1_000)
            assert the_same(found, "never seen, with a default").status == "fallback"
            errors = await four.each_now("get", "flight", "2", budget_ms=1_000)
            assert all(map(is_away, errors)), errors
            assert the_same(await four.each("get", "flights", "2"), "known without Redis")[0] is UnknownContext
        redis.resume()

        async def back() -> list[Any]:
            return await four.each_now("get", "flight", "2", budget_ms=1_000)

        await eventually(back, lambda seen: all(isinstance(one, Bundle) and one.fresh for one in seen))


async def test_many_threads_share_a_client(four: FourWays) -> None:
    def ask(number: int) -> tuple[str, Any]:
        client = four.clients[2 + number % 2]
        key = WEIRD_KEYS[number % len(WEIRD_KEYS)]
        return key, eventually_sync(lambda: client.get("flight", key), ignore=(Unavailable,))

    def all_asked() -> list[tuple[str, Any]]:
        with ThreadPoolExecutor(16) as threads:
            return list(threads.map(ask, range(600)))

    for key, bundle in await asyncio.to_thread(all_asked):
        assert bundle.key == key and bundle.fresh

    def from_its_own_loop() -> None:
        async def inside() -> None:
            four.clients[3].get("flight", "1")

        with pytest.raises(RuntimeError, match="from its own event loop"):
            four.clients[3]._portal.run(inside())

    await asyncio.to_thread(from_its_own_loop)


async def test_who_gives_up_disturbs_nobody(four: FourWays) -> None:
    for client in four.clients[:2]:
        waiting = [asyncio.create_task(client.get("flight", "1", position=LATER, budget_ms=4_000)) for _ in range(20)]
        await asyncio.sleep(0.2)
        for task in waiting:
            task.cancel()
        assert all(
            isinstance(one, asyncio.CancelledError) for one in await asyncio.gather(*waiting, return_exceptions=True)
        )
        found = await eventually(
            lambda asked=client: asyncio.gather(*[asked.get("flight", key) for key in WEIRD_KEYS * 2]),
            ignore=(Unavailable,),
        )
        assert [one.key for one in found] == list(WEIRD_KEYS * 2)


async def test_a_closed_client_says_so(four: FourWays) -> None:
    client = Client(four.world.url)
    await asyncio.to_thread(client.get, "flight", "1")
    await asyncio.to_thread(client.close)
    await asyncio.to_thread(client.close)
    with pytest.raises(Unavailable, match="has been closed"):
        await asyncio.to_thread(client.get, "flight", "1")


async def test_nobody_there(tmp_path: Path, redis_url: str) -> None:
    async with (
        AsyncClient("http://127.0.0.1:1") as http,
        AsyncClient.direct("redis://127.0.0.1:1", contexts=["flight"]) as direct,
    ):
        for client in (http, direct):
            with pytest.raises(Unavailable):
                await client.get("flight", "1", budget_ms=2_000)


async def test_a_server_that_hangs_is_not_waited_for() -> None:
    """It takes the connection and says nothing; and one that hangs up gets the question once more."""
    asked: list[bytes] = []
    hold = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        if b"/hang" in asked[-1]:
            await hold.wait()
        elif len(asked) < 3:
            writer.close()
            return
        body = b'{"context":"flight","key":"1","status":"missing","as_of":{},"age_ms":{},"spec_version":1,"hash":null}'
        writer.write(
            b"HTTP/1.1 404 NF\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body
        )
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server, AsyncClient(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}") as client:
        with pytest.raises(DeadlineExceeded, match="no answer within 100 ms"):
            await client.get("flight", "hang", budget_ms=100)
        assert b"x-request-timeout-ms: 80" in asked[0].lower()
        assert (await client.get("flight", "1")).missing and len(asked) == 3
        hold.set()


async def test_credentials_open_what_they_open(tmp_path: Path, redis_url: str) -> None:
    world = client_world(tmp_path, redis_url)
    await world.fill()
    world.write(access={"keys_file": "keys.json"})
    made = await asyncio.to_thread(
        ctxpipe,
        "key",
        "new",
        "--name",
        "acme",
        "--tenant",
        "acme",
        "--scope",
        "bundles:read",
        "--json",
        folder=tmp_path,
    )
    secret = made.lines()[0]["key"]
    async with served(world), AsyncClient(world.url, api_key=secret) as client, AsyncClient(world.url) as nobody:
        own, other = await client.get_many("seat", ["1|A", "1|B"])
        assert own.data["airline"] == "acme" and other.status == "fallback"
        for call in (nobody.get("seat", "1|A"), client.search("seat", "x"), nobody.contexts()):
            with pytest.raises(NotAllowed):
                await call


async def test_over_tls_with_a_certificate_of_its_own(tmp_path: Path, redis_url: str) -> None:
    authority = make_authority(tmp_path)
    certificate, key = authority.issue("serve", "IP:127.0.0.1")
    own_certificate, own_key = authority.issue("acme", "URI:spiffe://here/acme")
    world = client_world(tmp_path, redis_url)
    await world.fill()
    world.authority = ca = str(authority.certificate)
    files = {"certificate": str(certificate), "key": str(key), "client_ca": ca, "client_certificate": "optional"}
    principal = {"tenant": "other", "scopes": ["bundles:read"]}
    world.write(
        serve={"port": world.port, "tls": files}, access={"mtls": {"clients": {"URI:spiffe://here/acme": principal}}}
    )
    async with served(world):
        async with AsyncClient(world.url, ca=ca, certificate=str(own_certificate), key=str(own_key)) as client:
            own, other = await client.get_many("seat", ["1|B", "1|A"])
            assert own.data["airline"] == "other" and other.status == "fallback"
        async with AsyncClient(world.url, ca=ca) as nobody, AsyncClient(world.url) as distrustful:
            with pytest.raises(NotAllowed):
                await nobody.get("seat", "1|A")
            with pytest.raises(Unavailable, match="CERTIFICATE_VERIFY_FAILED"):
                await distrustful.get("seat", "1|A")
    with pytest.raises(ConfigError, match="can't be used"):
        AsyncClient(world.url, ca=str(tmp_path / "none.pem"))


@pytest.mark.parametrize("url", ["127.0.0.1:80", "ftp://host", "http://", ""])
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(ConfigError, match="is no address"):
        AsyncClient(url)
    for given in (
        {"url": url or "x", "contexts": ["flight"]},
        {"url": "redis://h:1"},
        {"config": "c", "url": "redis://h"},
    ):
        with pytest.raises(ConfigError):
            AsyncClient.direct(**given)  # type: ignore[arg-type]


def test_keys_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "key"
    file.write_text("of-a-file\n")
    monkeypatch.setenv("CTXPIPE_API_KEY_FILE", str(file))
    assert credential_headers(None, None) == {"x-api-key": "of-a-file"}
    monkeypatch.setenv("CTXPIPE_API_KEY", "of-a-variable")
    assert credential_headers(None, None) == {"x-api-key": "of-a-variable"}
    assert credential_headers("given", None) == {"x-api-key": "given"}
    assert credential_headers(None, "t") == {"authorization": "Bearer t"}
    monkeypatch.delenv("CTXPIPE_API_KEY")
    monkeypatch.setenv("CTXPIPE_API_KEY_FILE", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="can't be read"):
        credential_headers(None, None)


def test_both_clients_have_the_same_calls() -> None:
    assert BLOCKING.read_text() == formatted(blocking_source()), "run python -m pipeline.client.mirror"
    for name, method in inspect.getmembers(AsyncClient, callable):
        if name.startswith("_") and name != "__init__":
            continue
        own = getattr(Client, name)
        own_signature, signature = inspect.signature(own), inspect.signature(method)
        assert own_signature.parameters == signature.parameters, name
        if name not in ("direct", "close", "__init__"):
            assert own.__doc__ == method.__doc__ and own_signature.return_annotation == signature.return_annotation
        assert not inspect.iscoroutinefunction(own)
