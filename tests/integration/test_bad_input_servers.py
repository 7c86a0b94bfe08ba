"""Servers that are away at the start, refuse the password, or whose port is taken: one message, or patience as told."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from aiokafka import AIOKafkaProducer

from deploy.local.processes import choose_port
from deploy.local.roles import Role
from tests.integration.test_bad_input_files import SPEC, write
from tests.support.cli import ctxpipe
from tests.support.eventually import eventually, eventually_sync
from tests.support.streams import make_topic, new_name

pytestmark = pytest.mark.servers


@pytest.fixture
def role(tmp_path: Path) -> Iterator[Callable[..., Role]]:
    """Starts `ctxpipe` commands that go on running; ends them after the test."""
    started: list[Role] = []

    def start(*words: str) -> Role:
        config = ["--config", str(tmp_path / "ctxpipe.yaml")]
        started.append(Role([*words, *config], tmp_path / f"{len(started)}-{words[0]}.log").start())
        return started[-1]

    yield start
    for one in started:
        one.stop()
        assert "Traceback" not in one.log_file.read_text()


def test_servers_that_are_away_are_one_message(tmp_path: Path) -> None:
    write(tmp_path)
    for words, server in (
        (["get", "thing", "1"], "Redis"),
        (["verify", "thing"], "Redis"),
        (["serve", "--port", "0"], "Redis"),
        (["connect", "shop"], "Kafka at 127.0.0.1:1 can't be reached"),
        (["dlq", "thing", "list"], "Kafka at 127.0.0.1:1 does not answer"),
    ):
        done = ctxpipe(*words, folder=tmp_path)
        (message,) = done.told()
        assert done.code == 3 and server in message and not done.out, (words, done)
    checked = ctxpipe("check", "--json", folder=tmp_path)
    findings = {found["subject"]: found["severity"] for found in json.loads(checked.out)["findings"]}
    assert checked.code == 3 and not checked.err
    assert findings == dict.fromkeys(("source shop", "Kafka", "Redis"), "unreachable")


def test_get_and_serve_do_without_kafka_and_postgres(tmp_path: Path, redis_url: str, role: Callable[..., Role]) -> None:
    write(tmp_path, redis={"url": redis_url, "prefix": new_name("alone")})
    done = ctxpipe("get", "thing", "1", "--json", folder=tmp_path)
    assert done.code == 1 and done.lines()[0]["status"] == "missing"
    serving = role("serve", "--port", "0")
    address = eventually_sync(lambda: _address(serving), timeout_s=60)
    assert _status(f"{address}/readyz") == 200


async def test_a_worker_waits_for_redis_and_kafka_and_goes_on(
    tmp_path: Path, kafka_bootstrap: str, make_redis: Callable[..., Any], role: Callable[..., Role]
) -> None:
    redis, source = make_redis(), new_name("waits")
    redis.stop()
    spec = f"context: {source}\nversion: 1\nroot: o\nfields: [id]\n"
    spec += f"entities: {{o: {{source: {source}, table: public.o, key: [id]}}}}\n"
    gate = choose_port()
    kafka = {"bootstrap_servers": f"127.0.0.1:{gate}"}
    write(tmp_path, spec, kafka=kafka, redis={"url": redis.address}, sources={})
    await make_topic(kafka_bootstrap, f"{source}.public.o", 1, **{"cleanup.policy": "compact"})
    body = {"connector": "postgresql", "version": "ctxpipe-0.1.0", "name": source, "schema": "public", "table": "o"}
    value = {"op": "c", "after": {"id": 1}, "source": {**body, "lsn": 5, "ts_us": 5}}
    async with AIOKafkaProducer(bootstrap_servers=kafka_bootstrap) as producer:
        await producer.send_and_wait(f"{source}.public.o", json.dumps(value).encode(), key=b'{"id":1}')
    worker = role("worker", source)
    await eventually(lambda: "Redis does not answer" in worker.log_file.read_text(), timeout_s=60)
    redis.start()
    await eventually(lambda: f"Kafka at 127.0.0.1:{gate} does not answer" in worker.log_file.read_text(), timeout_s=60)

    async def stored() -> bool:
        worker.ensure_running()
        return (await asyncio.to_thread(ctxpipe, "get", source, "1", folder=tmp_path)).code == 0

    async with await asyncio.start_server(_way_to(kafka_bootstrap), "127.0.0.1", gate):
        await eventually(stored, timeout_s=60)
        told = worker.log_file.read_text()
        assert told.count("Redis does not answer") == told.count("does not answer (") == 1
        worker.stop()


def test_a_lookup_server_outlives_its_redis(
    tmp_path: Path, make_redis: Callable[..., Any], role: Callable[..., Role]
) -> None:
    redis = make_redis()
    write(tmp_path, SPEC + "serving: {budget_ms: 5000}\n", redis={"url": redis.address})
    serving = role("serve", "--port", "0")
    address = eventually_sync(lambda: _address(serving), timeout_s=60)
    assert _status(f"{address}/v1/contexts/thing/1") == 404
    redis.stop()
    assert _status(f"{address}/readyz") == 503
    lookup = f"{address}/v1/contexts/thing/1"
    eventually_sync(lambda: _status(lookup), lambda status: status == 503, timeout_s=30)  # near: none, for a second
    assert _status(f"{address}/livez") == 200
    redis.start()
    eventually_sync(lambda: _status(f"{address}/v1/contexts/thing/1"), lambda status: status == 404, timeout_s=30)


def test_a_wrong_password_of_redis_is_one_message(tmp_path: Path, make_redis: Callable[..., Any]) -> None:
    redis = make_redis(password="opensesame")
    commands = (["get", "thing", "1"], ["serve", "--port", "0"], ["verify", "thing"], ["worker"])
    for user, some in ((":wrong@", commands), ("", commands[:1])):
        write(tmp_path, redis={"url": f"redis://{user}127.0.0.1:{redis.port}/0"})
        for words in some:
            done = ctxpipe(*words, folder=tmp_path)
            assert done.code == 3 and done.err.count("Redis refuses") == 1, (words, done)
            assert "redis.url" in done.err and "wrong@" not in done.err
        checked = json.loads(ctxpipe("check", "--json", folder=tmp_path).out)
        (found,) = [found for found in checked["findings"] if found["subject"] == "Redis"]
        assert found["severity"] == "unreachable" and "section redis" in found["mend"]
    write(tmp_path, redis={"url": f"redis://:opensesame@127.0.0.1:{redis.port}/0"})
    assert ctxpipe("get", "thing", "1", folder=tmp_path).code == 1


def test_a_wrong_password_of_postgres_is_one_message(
    tmp_path: Path, make_postgres: Callable[..., Any], kafka_bootstrap: str, redis_url: str
) -> None:
    postgres = make_postgres(password="opensesame")
    wrong = postgres.address.replace("opensesame", "guessed")
    servers = {"kafka": {"bootstrap_servers": kafka_bootstrap}, "redis": {"url": redis_url}}
    source = new_name("locked")
    spec = SPEC.replace("source: shop", f"source: {source}")
    write(tmp_path, spec, **servers, sources={source: {"connector": "postgres", "dsn": wrong, "tables": TABLES}})
    for words, what in ((["connect", source], "refuses the login"), (["verify", "thing"], "password authentication")):
        done = ctxpipe(*words, folder=tmp_path)
        assert done.code == 3 and len(done.told()) == 1 and what in done.err and "guessed" not in done.err
    checked = ctxpipe("check", "--json", folder=tmp_path)
    (found,) = [found for found in json.loads(checked.out)["findings"] if found["severity"] == "unreachable"]
    assert checked.code == 3 and found["subject"] == f"source {source}" and "dsn" in found["message"]


TABLES = ["public.things", "public.lines"]


def test_tables_and_columns_that_are_not_there(
    tmp_path: Path, postgres_dsn: str, kafka_bootstrap: str, redis_url: str
) -> None:
    source = new_name("gaps")
    spec = SPEC.replace("source: shop", f"source: {source}")
    sources = {source: {"connector": "postgres", "dsn": postgres_dsn, "tables": TABLES}}
    write(
        tmp_path, spec, sources=sources, kafka={"bootstrap_servers": kafka_bootstrap}, redis={"url": redis_url}
    )  # fmt: skip
    with psycopg.connect(postgres_dsn, autocommit=True) as connection:
        connection.execute("CREATE TABLE things (id int PRIMARY KEY, nmae text)")
        _lacks_a_table(tmp_path, source)
        connection.execute("CREATE TABLE lines (id int PRIMARY KEY)")
    checked = ctxpipe("check", "--json", folder=tmp_path)
    unfit = {found["subject"]: found for found in json.loads(checked.out)["findings"] if found["severity"] == "unfit"}
    assert checked.code == 1 and set(unfit) == {f"{source}: public.things.name", f"{source}: public.lines.thing"}
    assert unfit[f"{source}: public.things.name"]["mend"] == "Did you mean nmae?"
    verified = ctxpipe("verify", "thing", folder=tmp_path)
    assert verified.code == 2 and "public.things has no column 'name'" in verified.err
    assert "public.lines has no column 'thing'" in verified.err and len(verified.told()) == 1


def _lacks_a_table(folder: Path, source: str) -> None:
    checked = ctxpipe("check", "--json", folder=folder)
    unfit = [found["subject"] for found in json.loads(checked.out)["findings"] if found["severity"] == "unfit"]
    assert checked.code == 1 and f"{source}: public.lines" in unfit
    for words in (["connect", source], ["verify", "thing"]):
        done = ctxpipe(*words, folder=folder)
        assert done.code in (2, 3) and len(done.told()) == 1 and "public.lines" in done.err, done


def test_a_port_in_use_is_one_message(tmp_path: Path, redis_url: str, kafka_bootstrap: str) -> None:
    write(tmp_path, redis={"url": redis_url}, kafka={"bootstrap_servers": kafka_bootstrap})
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = str(holder.getsockname()[1])
        for words, option in (
            (["serve", "--port", port], "--port"),
            (["connect", "shop", "--metrics-port", port], "--metrics-port"),
            (["up", "--dir", str(tmp_path / "stack"), "--port", f"redis={port}"], "--port redis=PORT"),
        ):
            done = ctxpipe(*words, folder=tmp_path)
            (message,) = done.told()
            assert done.code == 3 and port in message and option in message
        worker = ctxpipe("worker", "--metrics-port", port, folder=tmp_path)
        assert worker.code == 3 and worker.err.count(f"can't serve metrics on 127.0.0.1 port {port}") == 1
    status = ctxpipe("status", "--dir", str(tmp_path / "stack"), "--json", folder=tmp_path)
    states = {name: server["state"] for name, server in json.loads(status.out or '{"servers": {}}')["servers"].items()}
    assert set(states.values()) <= {"down"}, "nothing of a stack that can't be whole was started"


def _way_to(kafka: str) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    """For a server at another address of Kafka, whose clients go on at its own once they have asked for it."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = kafka.rpartition(":")
        onward_reader, onward_writer = await asyncio.open_connection(host, int(port))
        await asyncio.gather(_copy(reader, onward_writer), _copy(onward_reader, writer))

    return serve


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.close()


def _address(serving: Role) -> str:
    serving.ensure_running()
    found = [word for word in serving.log_file.read_text().split() if word.startswith("http://")]
    return found[0].rstrip(",").removesuffix("/v1/contexts") if found else ""


def _status(address: str) -> int:
    try:
        with urllib.request.urlopen(address, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
