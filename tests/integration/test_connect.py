"""`ctxpipe connect` and `check` as a person runs them: real Postgres, real Kafka, a process of its own."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from connectors.conformance.memory import apply
from connectors.source import SourceRecord
from tests.support.eventually import eventually
from tests.support.kafka_records import read_all
from tests.support.postgres_source import PostgresHarness

pytestmark = pytest.mark.servers

_numbers = itertools.count(int(time.time()) % 1_000_000)
MakeConfig = Callable[..., tuple[str, Path]]


@pytest.fixture
def make_config(tmp_path: Path, kafka_bootstrap: str, postgres_dsn: str) -> MakeConfig:
    """make_config(**changes) → (source name, file); each source has topics of its own."""

    def make(kafka: str = kafka_bootstrap, redis: str = "redis://127.0.0.1:1/0", **source: Any) -> tuple[str, Path]:
        name = f"s{next(_numbers)}"
        section = {"connector": "postgres", "dsn": postgres_dsn, "tables": ["public.t"], "heartbeat_interval_s": 0.2}
        body = {
            "kafka": {"bootstrap_servers": kafka, "partitions": 3},
            "redis": {"url": redis},
            "sources": {name: {**section, **source}},
        }
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(body))
        return name, path

    return make


class Command:
    """One `ctxpipe` process; its output goes to a file."""

    def __init__(self, *arguments: str, log: Path) -> None:
        self._arguments = [sys.executable, "-m", "pipeline.cli", *arguments]
        self._log = log
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> Command:
        with self._log.open("wb") as output:
            self.process = await asyncio.create_subprocess_exec(
                *self._arguments, stdout=output, stderr=output, cwd=Path(__file__).parents[2], env=dict(os.environ)
            )
        return self

    @property
    def output(self) -> str:
        return self._log.read_text()

    async def ended(self, timeout_s: float = 60) -> int:
        assert self.process is not None
        return await asyncio.wait_for(self.process.wait(), timeout_s)

    def send(self, number: int) -> None:
        assert self.process is not None
        if self.process.returncode is None:
            self.process.send_signal(number)


@pytest.fixture
def run_command(tmp_path: Path) -> Iterator[Callable[..., Command]]:
    started: list[Command] = []

    def make(*arguments: str) -> Command:
        started.append(Command(*arguments, log=tmp_path / f"log-{len(started)}"))
        return started[-1]

    yield make
    for command in started:
        command.send(signal.SIGKILL)


async def fold(bootstrap: str, name: str) -> dict[str, Any]:
    rows: dict[str, Any] = {}
    for record in await read_all(bootstrap, [f"{name}.public.t"]):
        apply(rows, SourceRecord(record.topic, record.key, record.value))
    return {key: row for key, (_, row) in rows.items() if row is not None}


async def test_kill_9_again_and_again_loses_nothing(
    make_config: MakeConfig, run_command: Callable[..., Command], kafka_bootstrap: str, postgres_dsn: str
) -> None:
    name, path = make_config()
    async with PostgresHarness(postgres_dsn) as harness:
        await harness.write("INSERT INTO {table} SELECT i, 'row ' || i FROM generate_series(1, 20000) i")
        command = await run_command("connect", name, "--config", str(path)).start()
        await eventually(lambda: fold(kafka_bootstrap, name), what="some of the snapshot")
        for number in range(3):
            await harness.write(f"UPDATE {{table}} SET v = 'round {number}' WHERE id % 3 = {number}")
            await harness.write(f"DELETE FROM {{table}} WHERE id % 100 = {number}")
            command.send(signal.SIGKILL)
            await command.ended()
            command = await run_command("connect", name, "--config", str(path)).start()

        async def equal() -> bool:
            assert command.process is not None and command.process.returncode is None, command.output
            return await fold(kafka_bootstrap, name) == await harness.rows()

        await eventually(equal, timeout_s=90, what="Kafka equal to the table")
        second = await run_command("connect", name, "--config", str(path)).start()
        assert await second.ended() == 3
        assert "two connectors" in second.output and "Traceback" not in second.output
        command.send(signal.SIGTERM)
        assert await command.ended() == 0, command.output
        assert "Traceback" not in command.output


async def test_ten_megabytes_pass_and_what_no_worker_reads_is_set_aside(
    make_config: MakeConfig, run_command: Callable[..., Command], kafka_bootstrap: str, postgres_dsn: str
) -> None:
    name, path = make_config()
    async with PostgresHarness(postgres_dsn) as harness:
        command = await run_command("connect", name, "--config", str(path)).start()
        await harness.write("INSERT INTO {table} VALUES (1, repeat('x', 10000000))")
        await harness.write("INSERT INTO {table} VALUES (2, repeat('y', 17000000)), (3, 'after')")
        await eventually(
            lambda: fold(kafka_bootstrap, name), lambda rows: {'{"id":1}', '{"id":3}'} <= set(rows), timeout_s=60
        )
        rows = await fold(kafka_bootstrap, name)
        assert len(rows['{"id":1}']["v"]) == 10_000_000 and '{"id":2}' not in rows
        letters = await read_all(kafka_bootstrap, [f"ctxpipe.{name}.dead-letter"])
        body = json.loads(letters[0].value)
        assert body["key"] == '{"id":2}' and body["size"] > 17_000_000 and "max.message.bytes" in body["reason"]
        listed, shown, again = [
            await run_command("dlq", "--config", str(path), name, *words).start()
            for words in (["list"], ["show", "0", "--json"], ["redrive", "0"])
        ]
        assert await listed.ended() == 0 and f'{name}.public.t {{"id":2}}' in listed.output
        assert await shown.ended() == 0 and json.loads(shown.output)["size"] == body["size"]
        assert await again.ended() == 1 and f"ctxpipe connect {name} --snapshot public.t" in again.output
        command.send(signal.SIGTERM)
        assert await command.ended() == 0, command.output


async def test_snapshot_by_command_and_reset(
    make_config: MakeConfig, run_command: Callable[..., Command], kafka_bootstrap: str, postgres_dsn: str
) -> None:
    name, path = make_config()
    async with PostgresHarness(postgres_dsn) as harness:
        await harness.write("INSERT INTO {table} SELECT i, 'row ' || i FROM generate_series(1, 50) i")
        command = await run_command("connect", name, "--config", str(path)).start()
        await eventually(lambda: fold(kafka_bootstrap, name), lambda rows: len(rows) == 50, what="the snapshot")
        assert (
            await (await run_command("connect", name, "--snapshot", "public.t", "--config", str(path)).start()).ended()
            == 0
        )

        async def incremental() -> int:
            return sum(
                b'"incremental"' in (r.value or b"") for r in await read_all(kafka_bootstrap, [f"{name}.public.t"])
            )

        await eventually(incremental, lambda count: count == 50, what="rows read again")
        command.send(signal.SIGTERM)
        assert await command.ended() == 0
        await harness.drop_slot(f"ctxpipe_{name}")
        await harness.write("DELETE FROM {table} WHERE id > 10")
        lost = await run_command("connect", name, "--config", str(path)).start()
        assert await lost.ended() == 3
        assert "--reset" in lost.output and "Traceback" not in lost.output
        again = await run_command("connect", name, "--reset", "--config", str(path)).start()
        await eventually(
            lambda: fold(kafka_bootstrap, name), lambda rows: len(rows) == 10, what="deleted rows vanish", timeout_s=40
        )
        again.send(signal.SIGTERM)
        assert await again.ended() == 0, again.output


async def test_what_a_person_can_mend_is_told_in_words(
    make_config: MakeConfig, run_command: Callable[..., Command], make_postgres: Callable[..., Any], postgres_dsn: str
) -> None:
    async with PostgresHarness(postgres_dsn):
        name, path = make_config(kafka="127.0.0.1:1")
        down = await run_command("connect", name, "--config", str(path)).start()
        assert await down.ended() == 3 and "Kafka at 127.0.0.1:1 can't be reached" in down.output
        unknown = await run_command("connect", "nonsense", "--config", str(path)).start()
        assert await unknown.ended() == 2 and name in unknown.output
        guarded = make_postgres(password="right")
        wrong = guarded.address.replace("right", "wrong")
        name, path = make_config(dsn=wrong)
        refused = await run_command("connect", name, "--config", str(path)).start()
        assert await refused.ended() == 3 and "refuses the login" in refused.output
        for command in (down, unknown, refused):
            assert "Traceback" not in command.output and "wrong" not in command.output.replace("wrong password", "")


async def test_check(
    make_config: MakeConfig, run_command: Callable[..., Command], postgres_dsn: str, redis_url: str
) -> None:
    ddl = "CREATE TABLE {table} (id int PRIMARY KEY, v text); CREATE TABLE keyless (id int)"
    async with PostgresHarness(postgres_dsn, ddl):
        name, path = make_config(redis=redis_url)
        fit = await run_command("check", "--json", "--config", str(path)).start()
        assert await fit.ended() == 0, fit.output
        result = json.loads(fit.output.splitlines()[-1])
        assert result["fit"] and {"wal_level", "login"} <= {f["subject"].split(": ")[-1] for f in result["findings"]}
        name, path = make_config(redis=redis_url, tables=["public.tt", "public.keyless", "public.t"])
        unfit = await run_command("check", name, "--config", str(path)).start()
        assert await unfit.ended() == 1
        assert "Did you mean public.t?" in unfit.output and "ADD PRIMARY KEY" in unfit.output
        _, path = make_config(kafka="127.0.0.1:1")
        away = await run_command("check", "--config", str(path)).start()
        assert await away.ended() == 3 and "Kafka" in away.output and "127.0.0.1:1 can't be reached" in away.output
        assert "Traceback" not in fit.output + unfit.output + away.output


async def test_check_sees_what_connect_would_refuse(
    make_config: MakeConfig,
    run_command: Callable[..., Command],
    kafka_bootstrap: str,
    postgres_dsn: str,
    redis_url: str,
) -> None:
    name, path = make_config(redis=redis_url)

    async def check(name: str, path: Path) -> tuple[int, dict[str, dict[str, str]]]:
        command = await run_command("check", name, "--json", "--config", str(path)).start()
        code = await command.ended()
        findings = json.loads(command.output.splitlines()[-1])["findings"]
        return code, {one["subject"]: one for one in findings if one["subject"].startswith(f"{name}: ")}

    async with PostgresHarness(postgres_dsn) as harness:
        code, found = await check(name, path)
        assert code == 0 and "none is stored" in found[f"{name}: position"]["message"]
        connector = await run_command("connect", name, "--config", str(path)).start()
        beats = [f"{name}.public.t"]
        await eventually(lambda: read_all(kafka_bootstrap, beats), timeout_s=60, what="it streams")
        connector.send(signal.SIGTERM)
        assert await connector.ended() == 0
        code, found = await check(name, path)
        assert code == 0 and "goes on at" in found[f"{name}: position"]["message"]
        other, other_path = make_config(redis=redis_url, slot=f"ctxpipe_{name}", publication=f"ctxpipe_{name}")
        code, found = await check(other, other_path)
        assert code == 1 and "no position is stored" in found[f"{other}: position"]["message"]
        await harness.drop_slot(f"ctxpipe_{name}")
        code, found = await check(name, path)
        lost = found[f"{name}: position"]
        assert code == 1 and "is gone" in lost["message"] and f"ctxpipe connect {name} --reset" in lost["mend"]


async def test_bench_capture_runs_small(
    run_command: Callable[..., Command], postgres_server: str, kafka_bootstrap: str
) -> None:
    from pipeline.commands import bench_capture

    result = await bench_capture.measure(postgres_server, kafka_bootstrap, 3000)
    assert result["rows_per_s"] > 0 and result["vs_bare_reading"] > 0 and result["limit"]


async def test_kafka_and_postgres_come_back(
    make_config: MakeConfig,
    run_command: Callable[..., Command],
    make_kafka: Callable[..., Any],
    make_postgres: Callable[..., Any],
) -> None:
    kafka, postgres = make_kafka(), make_postgres()
    name, path = make_config(kafka=kafka.address, dsn=postgres.address)
    async with PostgresHarness(postgres.address) as harness:
        await harness.write("INSERT INTO {table} SELECT i, 'row ' || i FROM generate_series(1, 100) i")
        command = await run_command("connect", name, "--config", str(path)).start()
        await eventually(lambda: fold(kafka.address, name), lambda rows: len(rows) == 100, timeout_s=60)
        await asyncio.to_thread(kafka.kill)
        await harness.write("UPDATE {table} SET v = 'while Kafka was away'")
        await asyncio.to_thread(kafka.start)

        async def equal() -> bool:
            assert command.process is not None and command.process.returncode is None, command.output
            return await fold(kafka.address, name) == await harness.rows()

        await eventually(equal, timeout_s=90, what="equal after Kafka came back")
    await asyncio.to_thread(postgres.restart)
    async with PostgresHarness(postgres.address, "SELECT 1") as harness:
        await harness.write("DELETE FROM {table} WHERE id > 50")
        await eventually(lambda: fold(kafka.address, name), lambda rows: len(rows) == 50, timeout_s=90)
        command.send(signal.SIGTERM)
        assert await command.ended() == 0 and "Traceback" not in command.output, command.output
