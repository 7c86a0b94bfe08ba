"""`ctxpipe space` as typed, on a real Redis and a real Kafka with hand-filled topics and the engine `hash`."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.structs import TopicPartition

from pipeline import cli
from pipeline.commands import _spaces
from pipeline.core.config import load
from pipeline.embedding.hashing import HashEngine
from pipeline.embedding.space import canary_vectors, define_space, encode_definition, space_id
from pipeline.stores.redis_store import Stores, context_settings, open_stores
from pipeline.stores.spaces import SpaceRecord, VectorState
from schemas.bundle import ROOT_UNIT, Meta, Stored, UnitKey
from schemas.context import ContextSpec
from schemas.topics import request_topic, space_group, text_topic, vector_topic
from schemas.vectors import TextRecord, encode_text, encode_vectors, hash_text
from tests.support.space_records import vector_record
from tests.support.streams import make_topic, new_name

pytestmark = pytest.mark.servers

TEXTS = {
    "B744": "Boeing 747 wide-body aircraft with four engines",
    "A388": "Airbus 380 wide-body aircraft with two decks",
    "B738": "Boeing 737 narrow-body aircraft for short flights",
    "C172": "Cessna 172 small propeller aircraft",
    "LAX": "Los Angeles airport on the west coast",
}
QUERIES = [
    {"query": "wide-body aircraft", "relevant": ["B744", "A388"]},
    {"query": "west coast airport", "relevant": {"LAX": 2}},
    {"query": "small propeller", "relevant": {"C172": 1}},
]
SPEC = {
    "version": 1,
    "root": "thing",
    "entities": {"thing": {"source": "shop", "table": "public.things", "key": ["id"]}},
    "fields": ["id", "name"],
    "text": {"template": "{{ name }}"},
}


class World:
    """A context with bundles in Redis, whose spaces are filled by hand."""

    def __init__(self, folder: Path, redis_url: str, bootstrap: str) -> None:
        self.folder, self.redis_url, self.bootstrap = folder, redis_url, bootstrap
        self.context = new_name("thing")
        self.config_path = folder / "ctxpipe.yaml"
        self.evaluate(QUERIES)
        config = {
            "kafka": {"bootstrap_servers": bootstrap},
            "redis": {"url": redis_url},
            "sources": {"shop": {"connector": "jsonlines", "path": "x", "tables": ["public.things"]}},
            "contexts": ["thing.yaml"],
        }
        self.config_path.write_text(yaml.safe_dump(config))
        self.embed(384)

    def embed(self, dimension: int, **more: Any) -> ContextSpec:
        gate = {"evaluation": "queries.jsonl", "k": 2}
        embedding = {"engine": "hash", "dimension": dimension, "gate": gate, **more}
        data = {"context": self.context, **SPEC, "embedding": embedding}
        (self.folder / "thing.yaml").write_text(yaml.safe_dump(data))
        return ContextSpec.model_validate(data)

    def evaluate(self, queries: list[Any]) -> None:
        lines = (json.dumps(query) for query in queries)
        (self.folder / "queries.jsonl").write_text("\n".join(lines))

    async def stores(self) -> Stores:
        return await open_stores(context_settings(load(self.config_path), self.embed(384)))

    async def bundles(self) -> None:
        stores = await self.stores()
        await make_topic(self.bootstrap, request_topic(self.context, 1), 2, **{"cleanup.policy": "compact"})
        items = [(UnitKey(ROOT_UNIT, key), Stored(1, Meta("h", 1), text.encode())) for key, text in TEXTS.items()]
        await stores.bundles.put(items)
        await stores.close()

    async def space(self, dimension: int, left_out: tuple[str, ...] = ()) -> str:
        """A candidate over the texts, complete but for the vectors of some keys."""
        engine = HashEngine(dimension)
        definition = define_space(self.embed(dimension), engine.identity)
        space, stores = space_id(definition), await self.stores()
        await stores.spaces.register(
            SpaceRecord(
                space=space,
                state="candidate",
                definition=encode_definition(definition),
                canaries=canary_vectors(engine),
                dimension=dimension,
                created_us=1_700_000_000_000_000 + dimension,
            )
        )
        texts, vectors = text_topic(self.context, 1, space), vector_topic(self.context, 1, space)
        for topic in (texts, vectors):
            await make_topic(self.bootstrap, topic, 2, **{"cleanup.policy": "compact"})
        states = {key: VectorState(1, "h", hash_text(text)) for key, text in TEXTS.items()}
        await stores.vector_states.write_texts(space, states)
        async with AIOKafkaProducer(bootstrap_servers=self.bootstrap) as producer:
            for key, text in TEXTS.items():
                record = TextRecord(space=space, counter=1, bundle_hash="h", text_hash=hash_text(text), text=text)
                await producer.send_and_wait(texts, encode_text(record), key=key.encode())
                if key not in left_out:
                    vector = encode_vectors(vector_record(space, text, engine=engine))
                    await producer.send_and_wait(vectors, vector, key=key.encode())
        hashes = {key: (hash_text(text), "") for key, text in TEXTS.items() if key not in left_out}
        await stores.vector_states.write_vectors(space, hashes)
        await stores.close()
        await self.commit(space, text_topic(self.context, 1, space))
        return space

    async def commit(self, space: str, topic: str) -> None:
        """The space's workers have done all of the topic, and are gone."""
        partitions = [TopicPartition(topic, number) for number in range(2)]
        group = space_group(self.context, 1, space)
        async with AIOKafkaConsumer(bootstrap_servers=self.bootstrap, group_id=group) as consumer:
            consumer.assign(partitions)
            await consumer.commit(await consumer.end_offsets(partitions))

    async def send(self, topic: str, key: str, value: bytes | None) -> None:
        async with AIOKafkaProducer(bootstrap_servers=self.bootstrap) as producer:
            await producer.send_and_wait(topic, value, key=key.encode())


@pytest.fixture
def world(tmp_path: Path, redis_url: str, kafka_bootstrap: str) -> World:
    world = World(tmp_path, redis_url, kafka_bootstrap)
    asyncio.run(world.bundles())
    return world


def run(world: World, capsys: Any, *words: str) -> tuple[int, str, str]:
    code = cli.run(["space", *words, "--config", str(world.config_path)])
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err + shown.out
    return code, shown.out, shown.err


def answer(world: World, capsys: Any, *words: str) -> tuple[int, Any]:
    code, out, err = run(world, capsys, *words, "--json")
    return code, json.loads(out) if out else err


def test_a_space_is_listed_followed_promoted_compared_and_taken_back(world: World, capsys: Any) -> None:
    good, context = asyncio.run(world.space(384)), world.context
    code, found = answer(world, capsys, "status", context, "--verify")
    (only,) = found["spaces"]
    assert (code, only["state"], only["texts"], only["vectors"], only["pending"]) == (0, "candidate", 5, 5, 0)
    assert only["proof"]["complete"] and len(set(only["proof"]["digests"].values())) == 1
    assert [lag["behind"] for lag in only["topics"]] == [0, 0]
    code, found = answer(world, capsys, "promote", context)
    assert (code, found["promoted"], found["reasons"]) == (0, True, ["the first space"])

    worse = asyncio.run(world.space(2))
    code, found = answer(world, capsys, "compare", context)
    assert (code, found["decision"]) == (1, "refuse")
    assert found["difference"]["ndcg"]["mean"] < 0 and found["worst_queries"]
    code, out, _ = run(world, capsys, "compare", context)
    assert code == 1 and "refuse" in out and "nDCG@2" in out and "loses:" in out
    code, found = answer(world, capsys, "promote", context)
    assert (code, found["promoted"]) == (1, False) and "below the serving space's" in found["reasons"][0]
    code, found = answer(world, capsys, "promote", context, "--override-reason", "a trial")
    assert (code, found["promoted"], found["override"], found["space"]) == (0, True, "a trial", worse)
    code, listed = answer(world, capsys, "list")
    states = {row["space"]: row for row in listed["spaces"]}
    assert (states[good]["state"], states[worse]["state"]) == ("previous", "serving")
    assert (states[worse]["evidence"]["action"], states[worse]["evidence"]["override"]) == ("overridden", "a trial")

    code, found = answer(world, capsys, "rollback", context, "--reason", "odd answers")
    assert (code, found["space"], found["rolled_back"]) == (0, good, True)
    code, out, _ = run(world, capsys, "list", context)
    assert code == 0 and "rolled back: odd answers" in out
    code, found = answer(world, capsys, "compare", context)
    assert code == 1 and "no candidate" in found["reasons"][0]


def test_a_space_with_gaps_is_not_promoted_and_the_gaps_are_named(world: World, capsys: Any) -> None:
    space = asyncio.run(world.space(384, left_out=("LAX",)))
    topic = vector_topic(world.context, 1, space)
    asyncio.run(world.send(topic, "resurrected", encode_vectors(vector_record(space, "gone", engine=HashEngine(384)))))
    code, out, _ = run(world, capsys, "status", world.context, "--verify")
    assert code == 1 and "not complete" in out
    assert "LAX: pending" in out and "resurrected: the vector topic differs from Redis" in out
    assert "left: 1 texts, cost 0" in out
    code, found = answer(world, capsys, "promote", world.context)
    assert code == 1 and "not complete: 1 keys: pending" in found["reasons"]


def test_a_previous_space_that_nobody_feeds_is_no_way_back_but_by_force(world: World, capsys: Any) -> None:
    old = asyncio.run(world.space(384))
    assert answer(world, capsys, "promote", world.context)[0] == 0
    asyncio.run(world.space(2))
    assert answer(world, capsys, "promote", world.context, "--override-reason", "x")[0] == 0
    asyncio.run(world.send(request_topic(world.context, 1), "LAX", b"{}"))
    code, found = answer(world, capsys, "rollback", world.context)
    assert (code, found["reasons"]) == (1, ["nobody feeds it: 1 records wait for its workers"])
    code, found = answer(world, capsys, "rollback", world.context, "--force")
    assert (code, found["space"]) == (0, old)


def test_retiring_deletes_topics_and_states_but_never_of_the_serving_one(world: World, capsys: Any) -> None:
    old = asyncio.run(world.space(384))
    assert answer(world, capsys, "promote", world.context)[0] == 0
    new = asyncio.run(world.space(2))
    assert answer(world, capsys, "promote", world.context, "--override-reason", "x")[0] == 0
    code, found = answer(world, capsys, "retire", world.context, new)
    assert code == 1 and "serves" in found["reasons"][0]
    code, found = answer(world, capsys, "retire", world.context, old)
    assert code == 1 and "--force" in found["reasons"][0]
    code, found = answer(world, capsys, "retire", world.context, old[:6], "--force")
    assert (code, found["states"], len(found["topics"])) == (0, 5, 2)
    code, found = answer(world, capsys, "retire", world.context, old)
    assert (code, found["states"], found["topics"]) == (0, 0, []), "again does no harm"
    code, found = answer(world, capsys, "promote", world.context, old)
    assert code == 1 and "is retired" in found["reasons"][0]


def test_mistakes_are_told(world: World, capsys: Any) -> None:
    asyncio.run(world.space(384))
    assert answer(world, capsys, "promote", world.context)[0] == 0
    code, _, err = run(world, capsys, "compare", world.context, "none")
    assert code == 2 and "there is no space 'none'" in err
    assert run(world, capsys, "status", "thin")[0] == 2
    assert run(world, capsys, "promote", world.context, "--override-reason", " ")[0] == 2
    asyncio.run(world.space(2))
    world.evaluate([{"query": ""}])
    code, _, err = run(world, capsys, "compare", world.context)
    assert code == 2 and "queries.jsonl:1" in err
    world.embed(2, gate={})
    code, found = answer(world, capsys, "compare", world.context)
    assert (code, found["decision"]) == (1, "needs a person")
    assert run(world, capsys, "rollback", world.context)[0] == 1


def test_a_workers_task_promotes_the_first_judges_the_next_once_and_returns_with_the_spec(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_spaces, "SETTLE_WAIT_S", 0.0)
    good = asyncio.run(world.space(384))

    def settle(wanted: str) -> tuple[str, str]:
        async def once() -> tuple[str, str]:
            spaces = await _spaces.open_spaces(load(world.config_path), world.context)
            try:
                step = await _spaces.settle(spaces, wanted)
            finally:
                await spaces.close()
            return step.do, step.reason

        return asyncio.run(once())

    assert settle("unknown")[0] == "wait"
    assert settle(good) == ("promote", "it is complete, and none serves yet")
    assert settle(good) == ("wait", "it serves")
    topic = request_topic(world.context, 1)
    worse = asyncio.run(world.space(2))
    asyncio.run(world.send(topic, "LAX", b"{}"))
    assert settle(worse) == ("wait", "1 records are still to be done")
    asyncio.run(world.commit(worse, topic))
    do, reason = settle(worse)
    assert do == "note" and "below the serving space" in reason
    do, again = settle(worse)
    assert do == "wait" and again.startswith("it was judged: ") and reason in again
    world.evaluate(QUERIES[::-1])
    assert settle(worse)[0] == "note", "asked again, with another file"
    better = asyncio.run(world.space(256))
    asyncio.run(world.commit(better, topic))
    assert settle(better)[0] == "promote"
    asyncio.run(world.commit(good, topic))
    assert settle(good) == ("promote", "it served before, and the spec asks for it again")
