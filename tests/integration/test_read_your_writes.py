"""Who wrote to Postgres reads that, on a real pipeline: by key, in batches, through a hot parent and the dirty lane."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from deploy.demo.http_client import HttpConnection
from deploy.demo.own_writes import Writing, write_and_read
from schemas.position import SourcePosition, position_of, token_of, token_of_lsn
from tests.integration.test_embedding_stage import Library
from tests.support.eventually import eventually
from tests.support.running_pipeline import RunningPipeline, free_port

pytestmark = [pytest.mark.servers, pytest.mark.timeout(400)]

HOST, BOOKS = "127.0.0.1", 20_000
TABLES = f"""
CREATE TABLE authors (id int PRIMARY KEY, rank int);
CREATE TABLE books (id int PRIMARY KEY, author_id int, stock int);
INSERT INTO authors VALUES (1, 0), (2, 0);
INSERT INTO books SELECT i, CASE WHEN i <= 100 THEN 2 ELSE 1 END, 0 FROM generate_series(1, {BOOKS}) i;
"""


class Shop(RunningPipeline):
    """Every book has its author copied in; author 1 has more books than a change may rebuild on its way."""

    def __init__(self, folder: Path, kafka: str, redis_url: str, dsn: str) -> None:
        super().__init__(folder, kafka, redis_url, dsn, TABLES, ("books", "authors"))
        entity = {"source": self.source, "key": ["id"]}
        author = {"entity": "author", "on": {"id": "author_id"}, "fields": ["id", "rank"], "compose": "copy"}
        self.write_file(
            "context.yaml",
            {
                "context": self.context,
                "version": 1,
                "root": "book",
                "entities": {
                    "book": {**entity, "table": "public.books"},
                    "author": {**entity, "table": "public.authors"},
                },
                "fields": ["id", "stock"],
                "sections": {"author": author},
                "serving": {"budget_ms": 10_000, "max_age_ms": 600_000},
            },
        )
        self.port = free_port()

    async def start(self) -> None:
        self.role("connect", self.source)
        self.role("worker")
        await self.until_serving(1)
        self.role("serve", "--port", str(self.port))
        await eventually(lambda: self.get("/readyz"), lambda seen: seen[0] == 200, timeout_s=60, what="serve answers")

    async def get(self, path: str) -> tuple[int, Any]:
        client = HttpConnection(HOST, self.port)
        try:
            status, body = await client.ask(path)
            return status, json.loads(body)
        except OSError as error:
            return 0, str(error)
        finally:
            client.close()

    async def lookup(self, key: int, token: str, budget_ms: int = 20_000) -> tuple[int, Any]:
        return await self.get(f"/v1/contexts/{self.context}/{key}?position={token}&budget_ms={budget_ms}")

    def writing(self, update: str, *path: str) -> Writing:
        return Writing(self.dsn, HOST, self.port, self.context, self.source, update, path, budget_ms=30_000)

    def write(self, statement: str) -> str:
        """The position after it."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            connection.execute(statement)
            row = connection.execute("SELECT pg_current_wal_insert_lsn()::text").fetchone()
        assert row is not None
        return token_of_lsn(self.source, row[0])


@pytest.fixture
async def shop(tmp_path: Path, kafka_bootstrap: str, redis_url: str, postgres_dsn: str) -> AsyncIterator[Shop]:
    made = Shop(tmp_path, kafka_bootstrap, redis_url, postgres_dsn)
    try:
        await made.start()
        yield made
    finally:
        await asyncio.to_thread(made.stop)


async def test_who_wrote_reads_it(shop: Shop) -> None:
    writing = shop.writing("UPDATE books SET stock = $1 WHERE id = $2", "stock")
    seen = await write_and_read(writing, range(1, 101), writes=200, in_flight=20)
    assert (seen.writes, seen.wrong_fresh, seen.errors) == (200, 0, [])
    assert seen.statuses == {"fresh": 200}

    # Through the hot author: its change is in the bundles only when the dirty lane has rebuilt them all.
    for rank in range(1, 6):
        token = shop.write(f"UPDATE authors SET rank = {rank} WHERE id = 1")
        for status, answer in await asyncio.gather(*[shop.lookup(key, token) for key in range(101, BOOKS, 1_500)]):
            assert (status, answer["status"]) == (200, "fresh")
            assert answer["bundle"]["author"]["rank"] == rank

    # The command's token is of this server; one of another, or of another kind, is refused.
    told = await shop.result("position", shop.source)
    position = position_of(told["position"])
    assert position.cluster == told["cluster"] and position.kind == "lsn"
    status, answer = await shop.lookup(1, told["position"])
    assert (status, answer["status"]) == (200, "fresh")
    seen_position = position_of(answer["position"][shop.source])
    assert seen_position.value >= position.value and seen_position.cluster == position.cluster
    foreign = token_of(SourcePosition(shop.source, "lsn", 5, "1"))
    assert (await shop.lookup(1, foreign))[0] == 400
    assert (await shop.lookup(1, "x"))[0] == 400
    code, _, problem = await shop.run("position", shop.source, "--lsn", "FFFFFFFF/0")
    assert code == 2 and "lies behind the end of the log" in problem

    # What cannot be reached in time is said so: nobody applies it.
    worker = shop.roles[1]
    shop.end(worker)
    token = shop.write("UPDATE books SET stock = -1 WHERE id = 1")
    status, answer = await shop.lookup(1, token, budget_ms=300)
    assert (status, answer["status"]) == (200, "stale") and answer["bundle"]["stock"] != -1
    assert [one["position"] for one in answer["not_reached"]] == [token]
    shop.role("worker")
    status, answer = await shop.lookup(1, token, budget_ms=60_000)
    assert (status, answer["status"], answer["bundle"]["stock"]) == (200, "fresh", -1)


async def test_who_wrote_finds_it(tmp_path: Path, kafka_bootstrap: str, redis_url: str, postgres_dsn: str) -> None:
    library = Library(tmp_path, kafka_bootstrap, redis_url, postgres_dsn)
    port = free_port()

    async def search(text: str, **more: Any) -> tuple[int, Any]:
        client = HttpConnection(HOST, port)  # one that has been idle for a while, as between commands, is closed
        try:
            body = json.dumps({"text": text, "k": 1, "budget_ms": 60_000, **more}).encode()
            status, answer = await client.ask(f"/v1/contexts/{library.context}:search", body)
        except OSError as error:
            return 0, str(error)
        finally:
            client.close()
        return status, json.loads(answer)

    try:
        library.start()
        await library.until_a_space_serves()
        library.role("serve", "--port", str(port))
        await eventually(lambda: search("volume"), lambda seen: seen[0] == 200, timeout_s=90, what="searches")
        for number, word in enumerate(("zebra", "quartz", "violin", "harbour"), start=20):
            library.change(f"UPDATE books SET title = 'the {word} of the {word}' WHERE id = {number}")
            told = await library.result("position", library.source)
            status, answer = await search(f"{word} {word}", position=told["position"])
            assert status == 200 and "not_reached" not in answer, answer
            (hit,) = answer["hits"]
            assert (hit["key"], hit["moved_on"], hit["answer"]["status"]) == (str(number), False, "fresh")
            assert hit["cosine"] is not None, "its vector was there"
        library.change("UPDATE books SET title = 'the tuba' WHERE id = 29")
        told = await library.result("position", library.source)
        typed = ("search", library.context, "tuba tuba", "-k", "1", "--position", told["position"])
        for where in ((), ("--url", f"http://{HOST}:{port}")):
            code, lines, problems = await library.run(*typed, *where)
            assert code == 0 and lines[0].startswith("29\t") and "not reached" not in problems
        library.end(library.roles[1])
        library.change("UPDATE books SET title = 'the comet' WHERE id = 30")
        told = await library.result("position", library.source)
        status, answer = await search("comet", position=told["position"], budget_ms=1_000)
        assert status == 200 and [one["position"] for one in answer["not_reached"]] == [told["position"]]
        typed = ("search", library.context, "comet", "-k", "1", "--url", f"http://{HOST}:{port}")
        code, lines, problems = await library.run(*typed, "--position", told["position"])
        assert code == 0 and len(lines) == 1 and "position not reached: " in problems
    finally:
        await asyncio.to_thread(library.stop)
