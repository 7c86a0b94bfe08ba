"""Everything odd that can meet the embedding stage, on real pipelines and through the commands: rows whose texts can't
be made or are too long, and an endpoint that answers with nonsense."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import yaml

from pipeline.core.errors import Retryable
from tests.integration.test_embedding_stage import Library
from tests.support.cli import ctxpipe
from tests.support.eventually import eventually
from tests.unit.test_embedding_openai import Answer, Server, fixed

pytestmark = [pytest.mark.servers, pytest.mark.timeout(400)]

DIMENSION = 3
FAILING = "{{ title }}{% if year < 0 %}{{ year / 0 }}{% endif %}"


@pytest.fixture
def library(tmp_path: Path, kafka_bootstrap: str, redis_url: str, postgres_dsn: str) -> Iterator[Library]:
    made = Library(tmp_path, kafka_bootstrap, redis_url, postgres_dsn)
    yield made
    made.stop()


async def labelled(library: Library, key: str) -> dict[str, Any]:
    """What `ctxpipe get` says of a bundle's vector."""
    code, lines, told = await library.run("get", library.context, key, "--json")
    assert code == 0, told
    label: dict[str, Any] = json.loads(lines[0])["embedding"]
    return label


async def until_labelled(library: Library, key: str, state: str, problem: str = "") -> dict[str, Any]:
    async def look() -> dict[str, Any]:
        for role in library.roles:
            role.ensure_running()
        return await labelled(library, key)

    return await eventually(
        look,
        lambda seen: seen["state"] == state and problem in seen.get("problem", ""),
        timeout_s=90,
        what=f"the vector of {key} is {state}: {problem}",
    )


async def until_problem(library: Library, space: str, key: str, problem: str) -> None:
    await eventually(
        lambda: library.state_of(space, key),
        lambda state: state is not None and problem in state.problem,
        timeout_s=90,
        ignore=(Retryable,),
        what=f"{key} lacks its vector: {problem}",
    )


async def until_title(library: Library, key: str, title: str) -> None:
    async def look() -> str:
        _, lines, _ = await library.run("get", library.context, key, "--json")
        found: str = json.loads(lines[0])["bundle"]["title"]
        return found

    await eventually(look, lambda found: found == title, timeout_s=60, what=f"{key} is called {title}")


async def status(library: Library, space: str) -> dict[str, Any]:
    shown = await library.result("space", "status", library.context)
    found: dict[str, Any] = next(one for one in shown["spaces"] if one["space"] == space)
    return found


async def test_rows_whose_texts_cannot_be_made_stop_nobody(library: Library) -> None:
    library.write_spec(template=FAILING, filters=["year"])
    library.start()
    space = await library.until_a_space_serves()
    library.change(
        "UPDATE books SET year = -1 WHERE id = 3",
        "UPDATE books SET title = '  ' WHERE id = 4",
        f"UPDATE books SET title = repeat('zeppelin ', {5_000_000 // 9}) WHERE id = 5",
        "UPDATE books SET title = E'\\u202e ¿qué? \\U0001F9D1 {{ 1 / 0 }} %' WHERE id = 6",
        "UPDATE books SET title = 'a field guide to mushrooms' WHERE id = 7",
    )
    problem = "refused: the text template fails on this bundle: division by zero"
    await until_labelled(library, "3", "failing", problem)
    await until_labelled(library, "4", "none")
    assert (await until_labelled(library, "5", "current", "cut"))["problem"].startswith("cut: ")
    for key in ("6", "7"):
        await until_labelled(library, key, "current")
    proof = await library.until_complete(space)
    assert (proof["bundles"], proof["vectors"]) == (120, 118), "complete without those that have no text"
    (letter,) = [one for one in await dead_letters(library) if one["bundle_keys"] == ["3"]]
    assert letter["topic"].endswith("texts-wanted") and "division by zero" in letter["reason"]
    shown = await status(library, space)
    assert (shown["refused"], shown["failing"]) == (1, 0) and problem in shown["problems"]
    code, lines, _ = await library.run("space", "status", library.context)
    assert code == 0 and any(f"1 x {problem}" in line for line in lines)
    assert (await library.search("mushrooms", "-k", "1"))[0]["key"] == "7"
    assert "3" not in {hit["key"] for hit in await library.search("volume 3", "-k", "1000")}

    await refused_questions(library)
    await redriven(library, letter["number"], "division by zero", fails=True)
    (again,) = [one for one in await dead_letters(library) if one["bundle_keys"] == ["3"]]
    assert (again["number"], again["state"], again["decision"]["attempts"]) == (letter["number"], "failed", 1)
    library.change("UPDATE books SET year = 1903 WHERE id = 3")
    await until_labelled(library, "3", "current")
    await redriven(library, letter["number"], "1 applied")
    assert not [one for one in await dead_letters(library) if one["bundle_keys"] == ["3"]]
    assert (await library.verified())[2] == 0


async def dead_letters(library: Library) -> list[dict[str, Any]]:
    code, lines, told = await dlq(library, "list", "--json")
    assert code == 0, told
    return [json.loads(line) for line in lines]


async def dlq(library: Library, *words: str) -> tuple[int, list[str], str]:
    """The group's options stand before the context."""
    done = await asyncio.to_thread(
        ctxpipe, "dlq", "--config", str(library.config_path), library.context, *words, folder=library.folder
    )
    return done.code, done.out.splitlines(), done.err


async def redriven(library: Library, number: int, said: str, fails: bool = False) -> None:
    """Waits for what becomes of the text."""
    code, lines, told = await dlq(library, "redrive", str(number), "--wait", "60")
    assert code == int(fails) and said in " ".join([*lines, told]), (lines, told)


async def refused_questions(library: Library) -> None:
    """Each is told with what would be right, and nothing else happens."""
    for words, said in (
        (("--filter", "title=x"), "marks no field 'title'"),
        (("-k", "0"), "k is 1 to 1,000"),
        (("-k", "1000000"), "k is 1 to 1,000"),
        (("-k", "-1"), "k is 1 to 1,000"),
        (("--min-score", "nan"), "min_score"),
    ):
        code, lines, told = await library.run("search", library.context, "volume", *words)
        assert code == 2 and said in told and not lines, (words, told)


def vectors(body: dict[str, Any], number: float | None = None, dimension: int = DIMENSION) -> Answer:
    """Told apart by the texts' lengths, or of this number throughout."""
    rows = [[float(len(text)) if number is None else number, 1.0, *[0.0] * (dimension - 2)] for text in body["input"]]
    data = [base64.b64encode(numpy.array(row, "<f4").tobytes()).decode() for row in rows]
    items = [{"index": place, "embedding": row} for place, row in enumerate(data)]
    return 200, {"content-type": "application/json"}, json.dumps({"data": items}).encode()


def nonsense_about(word: str) -> Callable[[dict[str, Any]], Answer]:
    """NaN where a text has the word; a text alone that has it not is answered well."""
    return lambda body: vectors(body, float("nan") if any(word in text for text in body["input"]) else None)


@pytest.fixture
def endpoint(library: Library) -> Iterator[Server]:
    server = Server()
    server.script = vectors
    library.config["embedding"] = {
        "endpoints": {"here": {"url": server.url, "api_key": "sk-secret", "encoding": "base64", "timeout_s": 5}}
    }
    library.write_config()
    library.write_spec(engine="openai", model="m", endpoint="here", dimension=DIMENSION, filters=[])
    yield server
    server.http.shutdown()


async def test_an_endpoint_that_fails_delays_vectors_only_and_the_bundles_say_so(
    library: Library, endpoint: Server
) -> None:
    library.start()
    space = await library.until_a_space_serves()
    await library.until_complete(space)
    failures: list[tuple[Callable[[dict[str, Any]], Answer], str]] = [
        (fixed(429, {"error": {"message": "too many"}}, retry_after="1"), "endpoint here answered 429: too many"),
        (fixed(500, b"oops"), "endpoint here answered 500: oops"),
        (lambda body: vectors(body, float("nan")), "endpoint here gave NaN, infinity or zeros"),
        (lambda body: vectors(body, dimension=5), "gave a vector of 5 dimensions where 3 are expected"),
        (lambda body: vectors(body, 1.0), "answers its canary texts differently"),
    ]
    endpoint.script = failures[0][0]
    library.change("UPDATE books SET title = 'a field guide to mushrooms' WHERE id = 7")
    for script, problem in failures:
        endpoint.script = script
        await until_problem(library, space, "7", problem)
    assert (await labelled(library, "7"))["state"] == "failing"
    shown = await status(library, space)
    assert shown["failing"] == 1 and any(failures[-1][1] in told for told in shown["problems"])
    library.change("UPDATE books SET title = 'waits for nobody' WHERE id = 8")
    await until_title(library, "8", "waits for nobody")
    endpoint.script = vectors
    await until_labelled(library, "7", "current")
    endpoint.script = nonsense_about("cursed")
    library.change(
        "UPDATE books SET title = 'a cursed book' WHERE id = 50", "UPDATE books SET title = 'a good book' WHERE id = 51"
    )
    await until_labelled(library, "50", "failing", "refused: endpoint here gave NaN, infinity or zeros")
    await until_labelled(library, "51", "current")
    (letter,) = [one for one in await dead_letters(library) if one["bundle_keys"] == ["50"]]
    assert ".texts." in letter["topic"]
    endpoint.script = vectors
    await redriven(library, letter["number"], "1 applied")
    await until_labelled(library, "50", "current")
    proof = await library.until_complete(space)
    assert (proof["bundles"], proof["vectors"]) == (120, 120), "nothing was lost"
    assert (await library.verified())[2] == 0
    for role in library.roles:
        assert "sk-secret" not in role.log_file.read_text()


async def test_a_spec_whose_model_is_none_leaves_the_space_that_serves(library: Library) -> None:
    library.start()
    space = await library.until_a_space_serves()
    library.end(library.roles[1])
    (library.folder / "no-model").mkdir()
    spec = yaml.safe_load((library.folder / "context.yaml").read_text())
    spec["embedding"] = {"engine": "onnx", "model": "./no-model", "template": spec["embedding"]["template"]}
    library.write_file("context.yaml", spec)
    again = library.role("worker")

    async def told() -> str:
        again.ensure_running()
        return again.log_file.read_text()

    log = await eventually(told, lambda seen: "no-model" in seen and "can't begin" in seen, timeout_s=90)
    assert "Traceback" not in log
    library.change("UPDATE books SET title = 'a field guide to mushrooms' WHERE id = 7")
    await until_labelled(library, "7", "current")
    assert await library.serving_space() == space
    code, lines, _ = await library.run("check")
    assert code == 1 and any("no-model" in line for line in lines), lines
