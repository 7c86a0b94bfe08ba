"""`ctxpipe get`, `serve` and `verify` as typed: output, exit codes, and what they say when a side is away."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
import yaml

from pipeline import cli
from pipeline.commands.serve import listen
from pipeline.core.clock import SystemClock
from pipeline.core.errors import EnvironmentProblem
from pipeline.stores.redis_client import RedisSettings
from pipeline.stores.redis_store import open_stores
from pipeline.stores.store import AppliedPosition
from schemas.bundle import ROOT_UNIT, Meta, Stored, UnitKey
from schemas.position import token_of_lsn

CONTEXT = """
context: thing
version: 1
root: thing
entities:
  thing: {source: shop, table: public.things, key: [id]}
fields: [id, name]
"""


@pytest.fixture
def config_path(tmp_path: Path) -> Path:
    return write_config(tmp_path, "redis://127.0.0.1:1/0", "postgresql://nobody@127.0.0.1:1/nothing")


def write_config(folder: Path, redis_url: str, dsn: str) -> Path:
    source = {"connector": "postgres", "dsn": dsn, "tables": ["public.things"], "slot": "s", "publication": "p"}
    config = {
        "kafka": {"bootstrap_servers": "127.0.0.1:1"},
        "redis": {"url": redis_url},
        "sources": {"shop": source},
        "contexts": ["thing.yaml"],
    }
    (folder / "thing.yaml").write_text(CONTEXT)
    path = folder / "ctxpipe.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


async def fill(redis_url: str, names: dict[int, str]) -> None:
    stores = await open_stores(RedisSettings(url=redis_url, context="thing", version=1))
    bodies = {number: json.dumps({"id": number, "name": name}).encode() for number, name in names.items()}
    await stores.bundles.put(
        [(UnitKey(ROOT_UNIT, str(number)), Stored(1, Meta("h", 1), body)) for number, body in bodies.items()]
    )
    later_us = SystemClock().now_us() + 10**12
    await stores.marks.write_applied({("shop.public.things", 0): AppliedPosition("shop", 1, "", later_us)})
    await stores.close()


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.run(arguments)
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err + shown.out
    return code, shown.out, shown.err


@pytest.fixture
def filled(tmp_path: Path, redis_url: str, postgres_dsn: str) -> str:
    with psycopg.connect(postgres_dsn, autocommit=True) as connection:
        connection.execute("CREATE TABLE things (id int PRIMARY KEY, name text)")
        connection.execute("INSERT INTO things VALUES (1, 'one'), (2, 'two')")
    asyncio.run(fill(redis_url, {1: "one", 2: "two"}))
    return str(write_config(tmp_path, redis_url, postgres_dsn))


@pytest.mark.servers
def test_get_shows_bundles(filled: str, capsys: Any) -> None:
    code, out, _ = run(capsys, "get", "thing", "1", "2", "--json", "--config", filled)
    lines = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and [line["bundle"] for line in lines] == [{"id": 1, "name": "one"}, {"id": 2, "name": "two"}]
    code, out, _ = run(capsys, "get", "thing", "1", "--config", filled)
    head, _, body = out.partition("\n")
    assert head.startswith("thing 1: fresh, shop 0 ms old") and json.loads(body) == {"id": 1, "name": "one"}


@pytest.mark.servers
def test_get_shows_the_text_that_a_model_reads(filled: str, capsys: Any) -> None:
    code, _, err = run(capsys, "get", "thing", "1", "--text", "--config", filled)
    assert code == 2 and "declares no text" in err
    spec = Path(filled).with_name("thing.yaml")
    spec.write_text(CONTEXT + 'text: {template: "Thing {{ id }} is called {{ name }}.", token_budget: 3}\n')
    code, out, _ = run(capsys, "get", "thing", "2", "--text", "--config", filled)
    assert (code, out.splitlines()) == (0, ["Thing 2 is", "[cut to the token budget]"])


@pytest.mark.servers
def test_get_ends_with_1_when_a_bundle_is_missing(filled: str, capsys: Any) -> None:
    code, out, _ = run(capsys, "get", "thing", "1", "3", "--json", "--config", filled)
    assert code == 1 and json.loads(out.splitlines()[1])["status"] == "missing"


@pytest.mark.servers
def test_get_tells_of_positions_that_are_not_reached(filled: str, capsys: Any) -> None:
    code, out, err = run(capsys, "get", "thing", "1", "--position", token_of_lsn("shop", 5), "--config", filled)
    assert code == 0 and out.startswith("thing 1: stale")
    assert "position not reached: nobody knows yet up to where changes of shop have been applied" in err
    code, _, err = run(capsys, "get", "thing", "1", "--position", token_of_lsn("other", 5), "--config", filled)
    assert code == 2 and "context thing reads no source 'other'" in err


@pytest.mark.servers
def test_verify_ends_with_0_when_equal_and_1_when_not(filled: str, redis_url: str, capsys: Any) -> None:
    code, out, err = run(capsys, "verify", "thing", "--json", "--config", filled)
    result = json.loads(out.splitlines()[-1])
    assert (code, result["verified"], result["mismatches"]) == (0, 2, 0) and "all 2 bundles" in err
    asyncio.run(fill(redis_url, {2: "zwei"}))
    code, out, err = run(capsys, "verify", "thing", "--json", "--config", filled)
    result = json.loads(out.splitlines()[-1])
    assert (code, result["mismatches"]) == (1, 1)
    assert result["differences"] == [{"key": "2", "path": "name", "source": '"two"', "redis": '"zwei"'}]
    assert "zwei" in err


@pytest.mark.parametrize("command", [["get", "thnig", "1"], ["verify", "thnig"]])
def test_an_unknown_context_is_a_mistake_with_a_suggestion(command: list[str], config_path: Path, capsys: Any) -> None:
    code, _, err = run(capsys, *command, "--config", str(config_path))
    assert code == 2 and "did you mean thing?" in err


@pytest.mark.parametrize("command", [["get", "thing", "1"], ["verify", "thing"], ["serve", "--port", "0"]])
def test_a_redis_that_is_away_is_one_message(command: list[str], config_path: Path, capsys: Any) -> None:
    code, _, err = run(capsys, *command, "--config", str(config_path))
    assert code == 3 and "Redis" in err


@pytest.mark.servers
def test_a_database_that_is_away_is_one_message(tmp_path: Path, redis_url: str, capsys: Any) -> None:
    path = write_config(tmp_path, redis_url, "postgresql://nobody@127.0.0.1:1/nothing")
    code, _, err = run(capsys, "verify", "thing", "--config", str(path))
    assert code == 3 and "source shop" in err


@pytest.mark.servers
def test_a_malformed_key_is_a_mistake(filled: str, capsys: Any) -> None:
    code, _, err = run(capsys, "get", "thing", "1|2", "--config", filled)
    assert code == 2 and "a key of thing has 1 part: id" in err


def test_a_port_in_use_is_one_message(config_path: Path, capsys: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = str(holder.getsockname()[1])
        code, _, err = run(capsys, "serve", "--port", port, "--config", str(config_path))
    assert code == 3 and f"can't listen on 127.0.0.1 port {port}" in err and "--port" in err


def test_an_address_that_is_not_ours_is_one_message() -> None:
    with pytest.raises(EnvironmentProblem, match=r"can't listen on 203\.0\.113\.1"):
        listen("203.0.113.1", 0)


@pytest.mark.servers
async def test_serve_answers_over_a_socket(filled: str) -> None:
    import sys

    from tests.support.eventually import eventually

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "pipeline.cli", "serve", "--port", str(port), "--config", filled
    )
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            await eventually(
                lambda: client.get("/readyz"), lambda seen: seen.status_code == 200, ignore=(httpx.HTTPError,)
            )
            answer = (await client.get("/v1/contexts/thing/1")).json()
        assert answer["bundle"] == {"id": 1, "name": "one"}
        process.terminate()
        await asyncio.wait_for(process.wait(), 10)
    finally:
        if process.returncode is None:
            process.kill()
