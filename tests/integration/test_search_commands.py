"""`ctxpipe search` and `serve` with searches, on real Kafka and Redis whose topics and records are filled by hand."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from pipeline.core.clock import SystemClock
from pipeline.embedding.hashing import HashEngine
from pipeline.embedding.space import SpaceDefinition, canary_vectors, define_space, encode_definition, space_id
from pipeline.stores.redis_client import RedisSettings
from pipeline.stores.redis_store import Stores, open_stores
from pipeline.stores.spaces import SpaceRecord, VectorState
from pipeline.stores.store import AppliedPosition
from pipeline.text import render_template
from schemas.bundle import ROOT_UNIT, Meta, Stored, UnitKey
from schemas.context import ContextSpec
from schemas.position import token_of_lsn
from schemas.topics import text_topic, vector_topic
from schemas.vectors import hash_text
from tests.support.cli import ROOT, Done, ctxpipe
from tests.support.eventually import eventually
from tests.support.space_records import SpaceTopics, space_topics

pytestmark = pytest.mark.servers

DIMENSION = 64
PLANES = {
    "N1": {"tail": "N1", "model": "wide body jet", "maker": "Boeing", "year": 1988},
    "N2": {"tail": "N2", "model": "narrow body jet", "maker": "Airbus", "year": 2001},
    "N3": {"tail": "N3", "model": "propeller plane", "maker": "Cessna", "year": 1975},
}
_numbers = itertools.count(1)


def context_file(name: str, template: str) -> dict[str, Any]:
    return {
        "context": name,
        "version": 1,
        "root": "plane",
        "entities": {"plane": {"source": "fleet", "table": "public.planes", "key": ["tail"]}},
        "fields": ["tail", "model", "maker", "year"],
        "embedding": {
            "engine": "hash", "dimension": DIMENSION, "template": template, "filters": ["maker", "year"]
        },
    }  # fmt: skip


@dataclass
class World:
    """A context that was embedded."""

    folder: Path
    name: str
    kafka: str
    stores: Stores
    counter: int = 0

    def spec(self, template: str) -> ContextSpec:
        return ContextSpec.model_validate(context_file(self.name, template))

    async def put(self, topics: SpaceTopics | None, template: str, plane: dict[str, Any]) -> None:
        """The bundle, and its text and vector where there are topics."""
        self.counter += 1
        body = json.dumps(plane).encode()
        body_hash = hash_text(body.decode())
        stored = Stored(self.counter, Meta(body_hash, 1), body)
        await self.stores.bundles.put([(UnitKey(ROOT_UNIT, plane["tail"]), stored)])
        if topics is None:
            return
        text = render_template(template, plane)
        filters = {"maker": plane["maker"], "year": plane["year"]}
        await topics.put(plane["tail"], text, self.counter, filters, bundle_hash=body_hash)
        state = VectorState(self.counter, body_hash, hash_text(text))
        await self.stores.vector_states.write_texts(topics.space, {plane["tail"]: state})
        await self.stores.vector_states.write_vectors(topics.space, {plane["tail"]: (hash_text(text), "")})

    @asynccontextmanager
    async def embedded(self, template: str, instead_of: str | None = None) -> AsyncIterator[SpaceTopics]:
        """A space with the vectors of all planes, promoted."""
        engine = HashEngine(DIMENSION)
        definition: SpaceDefinition = define_space(self.spec(template), engine.identity)
        space = space_id(definition)
        await self.stores.spaces.register(
            SpaceRecord(
                space=space,
                state="candidate",
                definition=encode_definition(definition),
                canaries=canary_vectors(engine),
                dimension=DIMENSION,
                created_us=SystemClock().now_us(),
            )
        )
        places = (vector_topic(self.name, 1, space), text_topic(self.name, 1, space))
        async with space_topics(self.kafka, *places, space) as topics:
            for plane in PLANES.values():
                await self.put(topics, template, plane)
            assert await self.stores.spaces.promote(space, instead_of, b"")
            yield topics


TEMPLATE = "{{ model }} of {{ maker }}"


@pytest.fixture
async def world(tmp_path: Path, redis_url: str, kafka_bootstrap: str) -> AsyncIterator[World]:
    name = f"planes{next(_numbers)}"
    stores = await open_stores(RedisSettings(url=redis_url, context=name, version=1))
    later_us = SystemClock().now_us() + 10**12
    await stores.marks.write_applied({("fleet.public.planes", 0): AppliedPosition("fleet", 1, "", later_us)})
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = {
        "kafka": {"bootstrap_servers": kafka_bootstrap},
        "redis": {"url": redis_url},
        "sources": {},
        "contexts": ["context.yaml"],
        "serve": {"port": port},
    }
    (tmp_path / "ctxpipe.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "context.yaml").write_text(yaml.safe_dump(context_file(name, TEMPLATE)))
    yield World(tmp_path, name, kafka_bootstrap, stores)
    await stores.close()


async def typed(world: World, *words: str) -> Done:
    return await asyncio.to_thread(ctxpipe, *words, folder=world.folder)


@asynccontextmanager
async def serving(world: World) -> AsyncIterator[httpx.AsyncClient]:
    port = yaml.safe_load((world.folder / "ctxpipe.yaml").read_text())["serve"]["port"]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "pipeline.cli", "serve", cwd=world.folder, env={"PYTHONPATH": str(ROOT)}
    )
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
            await eventually(
                lambda: client.get("/readyz"), lambda seen: seen.status_code == 200, ignore=(httpx.HTTPError,)
            )
            yield client
    finally:
        process.terminate()
        await asyncio.wait_for(process.wait(), 10)


async def asked(client: httpx.AsyncClient, world: World, **body: Any) -> httpx.Response:
    return await client.post(f"/v1/contexts/{world.name}:search", json=body)


async def test_search_without_a_server_reads_the_space_itself(world: World) -> None:
    async with world.embedded(TEMPLATE) as topics:
        done = await typed(world, "search", world.name, "wide body jets", "-k", "2", "--json")
        answer = done.lines()[0]
        assert done.code == 0 and [hit["key"] for hit in answer["hits"]] == ["N1", "N2"]
        assert (answer["space"], answer["mode"], answer["degraded"]) == (topics.space, "hybrid", None)
        assert answer["hits"][0]["answer"]["embedding"] == {"space": topics.space, "state": "current"}
        shown = await typed(world, "search", world.name, "--key", "N1", "--filter", "year<2000")
        assert shown.code == 0 and shown.out.split("\t")[0] == "N3" and shown.out.count("\n") == 1
        assert "1 hit, vector search in space" in shown.err
        none = await typed(world, "search", world.name, "jet", "--filter", "maker=Fokker")
        assert (none.code, none.out) == (1, "")
        got = await typed(world, "get", world.name, "N1", "--json")
        assert got.lines()[0]["embedding"] == {"space": topics.space, "state": "current"}


async def test_bad_questions_are_usage(world: World) -> None:
    async with world.embedded(TEMPLATE):
        done = await typed(
            world, "search", world.name, "", "-k", "0", "--min-score", "7", "--filter", "year", "--filter", "year<null"
        )
        assert done.code == 2
        for said in ("text is empty", "k is 1 to 1,000", "min_score is a cosine", "'year' is no condition"):
            assert said in done.err
        unmarked = await typed(world, "search", world.name, "jet", "--filter", "seats=7")
        assert unmarked.code == 2 and "marks no field 'seats'" in unmarked.err
        unknown = await typed(world, "search", world.name, "--key", "N9")
        assert unknown.code == 2 and "no bundle 'N9'" in unknown.err
        for word, said in ((token_of_lsn("elsewhere", 5), "reads no source 'elsewhere'"), ("7", "'7' is no position")):
            wrong = await typed(world, "search", world.name, "jet", "--position", word)
            assert wrong.code == 2 and said in wrong.err
        other = await typed(world, "search", "plains", "jet")
        assert other.code == 2 and f"did you mean {world.name}?" in other.err


async def test_what_is_missing_outside_is_told(world: World) -> None:
    none = await typed(world, "search", world.name, "jet")
    assert none.code == 3 and "no embedding space" in none.err
    away = await typed(world, "search", world.name, "jet", "--url", "http://127.0.0.1:1")
    assert away.code == 3 and "does not answer as `ctxpipe serve` does" in away.err


async def test_serve_answers_searches_and_follows_what_changes(world: World) -> None:
    async with world.embedded(TEMPLATE) as topics, serving(world) as client:
        first = await eventually(
            lambda: asked(client, world, text="wide body jet", k=1),
            lambda seen: seen.status_code == 200 and seen.json()["degraded"] is None,
        )
        assert first.json()["hits"][0]["key"] == "N1"
        listed = (await client.get("/v1/contexts")).json()["contexts"][0]
        assert listed["space"] == topics.space
        by_command = await typed(world, "search", world.name, "wide body jet", "-k", "1")
        assert by_command.code == 0 and by_command.out.startswith("N1\t") and "reading space" not in by_command.err
        await world.put(topics, TEMPLATE, {"tail": "N4", "model": "zeppelin", "maker": "LZ", "year": 1936})
        found = await eventually(
            lambda: asked(client, world, text="zeppelin", filter={"year": {"lt": 1950}}),
            lambda seen: bool(seen.json()["hits"]),
        )
        assert found.json()["hits"][0]["answer"]["bundle"]["maker"] == "LZ"
        await world.put(None, TEMPLATE, {"tail": "N4", "model": "balloon", "maker": "LZ", "year": 1936})
        moved = (await asked(client, world, text="zeppelin", k=1)).json()["hits"][0]
        assert moved["moved_on"] and moved["answer"]["bundle"]["model"] == "balloon"
        await topics.delete("N4")
        await eventually(
            lambda: asked(client, world, text="zeppelin"),
            lambda seen: "N4" not in [hit["key"] for hit in seen.json()["hits"]],
        )
        assert 'ctxpipe_active_space_info{context="' in (await client.get("/metrics")).text


async def test_a_swap_under_load_has_no_error_and_no_mixed_answer(world: World) -> None:
    other = "{{ maker }} built {{ model }} in {{ year }}"
    answers: list[dict[str, Any]] = []
    stop = asyncio.Event()

    async with world.embedded(TEMPLATE) as topics, serving(world) as client:

        async def ask() -> None:
            while not stop.is_set():
                response = await asked(client, world, text="wide body jet of Boeing", k=3)
                assert response.status_code == 200, response.text
                answers.append(response.json())

        await eventually(
            lambda: asked(client, world, text="wide body jet", k=1),
            lambda seen: seen.status_code == 200 and seen.json()["degraded"] is None,
        )
        asking = [asyncio.create_task(ask()) for _ in range(20)]
        async with world.embedded(other, topics.space) as second:
            await eventually(lambda: any(answer["space"] == second.space for answer in answers))
            assert await world.stores.spaces.promote(topics.space, second.space, b"")
            await eventually(lambda: answers[-1]["space"] == topics.space)
        stop.set()
        await asyncio.gather(*asking)
    texts = {topics.space: "wide body jet of Boeing", second.space: "Boeing built wide body jet in 1988"}
    for answer in answers:
        assert answer["degraded"] is None and answer["hits"][0]["passage"]["text"] == texts[answer["space"]]
