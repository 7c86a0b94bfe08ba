"""A changed embedding section, rolled out, builds another space beside the serving one: with the real model, and the
index that serves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.test_embedding_stage import BOOKS, Library
from tests.support.eventually import eventually
from tests.support.running_pipeline import free_port

pytestmark = [pytest.mark.servers, pytest.mark.timeout(300)]

SUBJECTS = ("growing vegetables at home", "the history of steam engines", "sailing across the ocean", "baking bread")
QUESTIONS = {
    "how do I plant tomatoes in my garden": "0",
    "locomotives of the nineteenth century": "1",
    "a boat trip over the sea": "2",
    "recipe for a sourdough loaf": "3",
}
"""Words that no title has: only a model that knows what they mean finds the right shelf."""
MODEL = {"engine": "sentence-transformers", "model": "all-MiniLM-L6-v2"}


class Shelves(Library):
    """A quarter of the books on each subject."""

    def __init__(self, folder: Path, kafka: str, redis_url: str, dsn: str) -> None:
        super().__init__(folder, kafka, redis_url, dsn)
        for number, subject in enumerate(SUBJECTS):
            self.change(f"UPDATE books SET title = '{subject}, volume ' || id WHERE id % 4 = {number}")
        lines = [
            {"query": query, "relevant": [str(key) for key in range(1, BOOKS + 1) if key % 4 == int(shelf)]}
            for query, shelf in QUESTIONS.items()
        ]
        (folder / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        self.ask_for()

    def ask_for(self, **embedding: Any) -> None:
        gate = {"evaluation": "questions.jsonl", "k": 10}
        self.write_spec(template="{{ title }}", filters=["year"], gate=gate, **embedding)

    async def space_command(self, *words: str) -> tuple[int, dict[str, Any]]:
        code, lines, told = await self.run("space", words[0], self.context, *words[1:], "--json")
        assert lines, told
        return code, json.loads(lines[-1])

    async def until_state(self, space: str, state: str) -> None:
        async def look() -> str | None:
            found = (await self.space_command("list"))[1]["spaces"]
            return next((one["state"] for one in found if one["space"] == space), None)

        await eventually(look, lambda seen: seen == state, timeout_s=120, what=f"{space} is {state}")

    async def candidate_beside(self, known: set[str]) -> str:
        async def look() -> list[str]:
            found = (await self.space_command("list"))[1]["spaces"]
            return [one["space"] for one in found if one["space"] not in known]

        return (await eventually(look, bool, timeout_s=90, what="a candidate begins"))[0]


@pytest.fixture
def shelves(tmp_path: Path, kafka_bootstrap: str, redis_url: str, postgres_dsn: str) -> Iterator[Shelves]:
    made = Shelves(tmp_path, kafka_bootstrap, redis_url, postgres_dsn)
    yield made
    made.stop()


class Searches:
    """Asks without a pause; every answer is of one space, and finds something."""

    def __init__(self, context: str, port: int) -> None:
        self.path, self.seen = f"/v1/contexts/{context}:search", dict[str, int]()
        self.client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30)

    async def run(self) -> None:
        while True:
            for question in QUESTIONS:
                response = await self.client.post(self.path, json={"text": question, "k": 5})
                assert response.status_code == 200, response.text
                answer = response.json()
                assert len(answer["hits"]) == 5 and answer["mode"] != "lexical", answer
                self.seen[answer["space"]] = self.seen.get(answer["space"], 0) + 1


async def test_a_better_space_takes_over_under_searches_and_a_worse_one_does_not(shelves: Shelves) -> None:
    shelves.role("connect", shelves.source)
    worker, port = shelves.role("worker"), free_port()
    by_words = await shelves.until_a_space_serves()
    shelves.role("serve", "--port", str(port))
    searches = Searches(shelves.context, port)
    async with searches.client:
        await eventually(lambda: _answers(searches), bool, timeout_s=60, what="serve answers searches")
        asking = asyncio.create_task(searches.run())
        shelves.end(worker)
        shelves.ask_for(**MODEL)
        worker = shelves.role("worker")
        by_meaning = await shelves.until_a_space_serves(other_than=by_words)
        await eventually(lambda: searches.seen.get(by_meaning, 0), lambda n: n > 10, timeout_s=60, what="it answers")
        evidence = next(one for one in (await shelves.space_command("list"))[1]["spaces"] if one["space"] == by_meaning)
        assert evidence["evidence"]["action"] == "promoted", evidence
        await shelves.until_state(by_words, "previous")
        assert {hit["key"] for hit in await shelves.search("a boat trip over the sea", "-k", "5")} <= {
            str(key) for key in range(2, BOOKS + 1, 4)
        }

        code, told = await shelves.space_command("rollback", "--reason", "a test")
        assert (code, told["space"]) == (0, by_words), told
        before = searches.seen[by_words]
        await eventually(lambda: searches.seen[by_words] - before, lambda n: n > 10, timeout_s=60, what="the return")
        code, told = await shelves.space_command("promote", by_meaning)
        assert code == 0, told

        shelves.end(worker)
        shelves.ask_for(engine="hash", dimension=8)
        shelves.role("worker")
        worse = await shelves.candidate_beside({by_words, by_meaning})

        async def judged() -> dict[str, Any]:
            found = (await shelves.space_command("list"))[1]["spaces"]
            return next(one["evidence"] or {} for one in found if one["space"] == worse)

        evidence = await eventually(judged, bool, timeout_s=120, what="the worse one is judged")
        assert (evidence["action"], evidence["decision"]) == ("judged", "refuse"), evidence
        assert await shelves.serving_space() == by_meaning
        assert not asking.done(), asking.exception()
        asking.cancel()
    assert set(searches.seen) == {by_words, by_meaning}


async def _answers(searches: Searches) -> bool:
    try:
        response = await searches.client.post(searches.path, json={"text": "bread", "k": 1})
    except httpx.TransportError:
        return False
    return response.status_code == 200
