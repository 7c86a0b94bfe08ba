"""Changes in Postgres become texts, vectors and hits: on a real pipeline, through the commands."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pipeline.commands._spaces import open_spaces
from pipeline.core.config import load
from pipeline.ops.space_digest import SpaceProof
from pipeline.ops.space_promotion import proof_object
from pipeline.stores.spaces import VectorState
from tests.support.eventually import eventually
from tests.support.running_pipeline import RunningPipeline

pytestmark = [pytest.mark.servers, pytest.mark.timeout(300)]

BOOKS = 120
TABLES = """
CREATE TABLE books (id int PRIMARY KEY, author_id int, title text, year int);
CREATE TABLE authors (id int PRIMARY KEY, name text, country text);
INSERT INTO authors SELECT i, 'author ' || i, 'country ' || i % 3 FROM generate_series(0, 9) i;
INSERT INTO books SELECT i, i % 10, 'volume ' || i || ' of the collected letters', 1900 + i
  FROM generate_series(1, 120) i;
"""
TEMPLATE = "{{ title }} by {{ author.name }}"


class Library(RunningPipeline):
    """Books with their authors, linked."""

    def __init__(self, folder: Path, kafka: str, redis_url: str, dsn: str) -> None:
        super().__init__(folder, kafka, redis_url, dsn, TABLES, ("books", "authors"))
        self.write_spec()

    def write_spec(self, serving: dict[str, Any] | None = None, **embedding: Any) -> None:
        entity = {"source": self.source, "key": ["id"]}
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
                "fields": ["id", "title", "year"],
                "sections": {
                    "author": {
                        "entity": "author",
                        "on": {"id": "author_id"},
                        "fields": ["name", "country"],
                        "compose": "link",
                    }
                },
                "embedding": {
                    "engine": "hash",
                    "template": TEMPLATE,
                    "filters": ["year", "author.country"],
                    **embedding,
                },
                "serving": {"budget_ms": 10_000, "max_age_ms": 60_000, **(serving or {})},
            },
        )

    def start(self) -> None:
        self.role("connect", self.source)
        self.role("worker")

    async def serving_space(self) -> str | None:
        stores = await self.stores()
        try:
            return await stores.spaces.serving()
        finally:
            await stores.close()

    async def until_a_space_serves(self, other_than: str | None = None) -> str:
        async def look() -> str | None:
            for role in self.roles:
                role.ensure_running()
            return await self.serving_space()

        space = await eventually(look, lambda seen: seen not in (None, other_than), timeout_s=90, what="a space serves")
        assert space is not None
        return space

    async def state_of(self, space: str, key: str) -> VectorState | None:
        stores = await self.stores()
        try:
            return (await stores.vector_states.read_states(space, [key]))[0]
        finally:
            await stores.close()

    async def until_complete(self, space: str) -> dict[str, Any]:
        """What the command says of it then."""

        async def look() -> dict[str, Any]:
            return proof_object(await self.prove(space))

        await eventually(look, lambda seen: seen["complete"], timeout_s=60, what="the space is complete")
        proof = await self.proof(space)
        assert proof["complete"], proof
        return proof

    async def prove(self, space: str) -> SpaceProof:
        """As the command does, without the time that a process takes to start."""
        spaces = await open_spaces(load(self.config_path), self.context)
        try:
            record = next(one for one in await spaces.records() if one.space == space)
            return await spaces.prove(record)
        finally:
            await spaces.close()

    async def proof(self, space: str) -> dict[str, Any]:
        shown = await self.result("space", "status", self.context, "--verify")
        found: dict[str, Any] = next(one["proof"] for one in shown["spaces"] if one["space"] == space)
        return found

    async def search(self, text: str, *more: str) -> list[dict[str, Any]]:
        code, lines, told = await self.run("search", self.context, text, "--json", *more)
        assert code in (0, 1) and lines, told
        found: list[dict[str, Any]] = json.loads(lines[-1])["hits"]
        return found

    def change(self, *statements: str) -> None:
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement)


@pytest.fixture
def library(tmp_path: Path, kafka_bootstrap: str, redis_url: str, postgres_dsn: str) -> Iterator[Library]:
    made = Library(tmp_path, kafka_bootstrap, redis_url, postgres_dsn)
    yield made
    made.stop()


async def test_texts_follow_their_rows(library: Library) -> None:
    library.start()
    space = await library.until_a_space_serves()
    proof = await library.until_complete(space)
    assert (proof["bundles"], proof["texts"], proof["vectors"]) == (BOOKS, BOOKS, BOOKS)
    hits = await library.search("volume 77 of the collected letters by author 7")
    assert hits[0]["key"] == "77" and hits[0]["answer"]["bundle"]["year"] == 1977

    library.change(
        "UPDATE books SET title = 'cooking with mushrooms' WHERE id = 5",
        "UPDATE books SET year = 2030 WHERE id = 6",
        "DELETE FROM books WHERE id = 7",
        "UPDATE authors SET name = 'a new pen name' WHERE id = 8",
        "INSERT INTO books VALUES (500, 3, 'a field guide to mushrooms', 2021)",
        "UPDATE books SET title = NULL, author_id = NULL WHERE id = 9",
    )

    async def settled() -> list[Any]:
        states = [await library.state_of(space, key) for key in ("5", "500", "8")]
        return [state is not None and state.text_hash == state.vector_hash and state.text_hash for state in states]

    await eventually(settled, all, timeout_s=30, what="the changed texts have vectors")
    proof = await library.until_complete(space)
    assert (proof["bundles"], proof["vectors"]) == (BOOKS, BOOKS)
    assert {hit["key"] for hit in (await library.search("mushrooms"))[:2]} == {"5", "500"}
    assert (await library.search("volume 8 by a new pen name"))[0]["key"] == "8", (
        "a linked section's change comes through"
    )
    assert "7" not in {hit["key"] for hit in await library.search("volume 7 of the collected letters", "-k", "100")}
    narrowed = await library.search("volume of the collected letters", "--filter", "year=2030")
    assert [hit["key"] for hit in narrowed] == ["6"], "a filter's value changes without a new vector"
    code, lines, told = await library.run("get", library.context, "5", "--json")
    assert code == 0, told
    assert json.loads(lines[0])["embedding"] == {"space": space, "state": "current"}
    assert (await library.verified())[2] == 0


async def test_a_bundle_that_has_lived_its_time_is_found_no_more(library: Library) -> None:
    library.write_spec(serving={"time_to_live_s": 8})
    library.start()
    space = await library.until_a_space_serves()
    library.change("UPDATE books SET year = year + 1 WHERE id < 50")  # these live longer

    async def vectors() -> int:
        stores = await library.stores()
        try:
            return sum([bool(state.vector_hash) async for _, state in stores.vector_states.scan_states(space)])
        finally:
            await stores.close()

    await eventually(vectors, lambda count: count == 0, timeout_s=90, what="no vector is left")
    proof = await library.until_complete(space)
    assert (proof["bundles"], proof["texts"], proof["vectors"]) == (0, 0, 0)
    assert await library.search("volume 77 of the collected letters") == []
