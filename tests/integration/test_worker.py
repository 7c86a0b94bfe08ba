"""`ctxpipe worker` and `ctxpipe dlq` as a person runs them: real processes, a real Kafka and Redis."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer

from deploy.local.processes import choose_port
from tests.support.eventually import eventually, eventually_sync
from tests.support.streams import make_topic, new_name

pytestmark = pytest.mark.servers

Start = Callable[..., subprocess.Popen[bytes]]

SPEC = """
context: {context}
version: 1
root: order
entities:
  order: {{source: {source}, table: public.orders, key: [id]}}
fields: [id, amount]
"""


class Place:
    """A folder with a configuration and one context."""

    def __init__(self, folder: Path, bootstrap: str, redis_url: str) -> None:
        self.folder, self.log = folder, folder / "worker.log"
        self.context, self.source = new_name("worker"), new_name("shop")
        self.topic = f"{self.source}.public.orders"
        config = {
            "kafka": {"bootstrap_servers": bootstrap, "partitions": 2},
            "redis": {"url": redis_url},
            "contexts": ["*.context.yaml"],
        }
        (folder / "ctxpipe.yaml").write_text(json.dumps(config))
        (folder / "one.context.yaml").write_text(SPEC.format(context=self.context, source=self.source))

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "pipeline.cli", *words, "--config", str(self.folder / "ctxpipe.yaml")]

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.command(*words), capture_output=True, text=True, timeout=60, check=False)

    def dlq(self, *words: str, code: int = 0) -> list[Any]:
        """JSON lines of `ctxpipe dlq CONTEXT …`."""
        config = ["--config", str(self.folder / "ctxpipe.yaml")]
        command = [sys.executable, "-m", "pipeline.cli", "dlq", *config, self.context, *words, "--json"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == code, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    def told(self) -> str:
        return self.log.read_text()


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts `ctxpipe worker` of a place; ends it after the test."""
    started: list[subprocess.Popen[bytes]] = []

    def begin(place: Place, *words: str) -> subprocess.Popen[bytes]:
        with place.log.open("wb") as log:
            environment = {**os.environ, "PYTHONPATH": os.getcwd()}
            command = place.command("worker", *words)
            started.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment))
        return started[-1]

    yield begin
    for worker in started:
        if worker.poll() is None:
            worker.terminate()
            worker.wait(40)


def change(place: Place, number: int, amount: str) -> tuple[bytes, bytes]:
    """(key, value) of an order's envelope."""
    source = {"connector": "postgresql", "version": "ctxpipe-0.1.0", "name": place.source, "schema": "public"}
    source |= {"table": "orders", "db": "d", "snapshot": "false", "ts_ms": 1, "ts_us": 1000, "txId": 1}
    source |= {"lsn": 100 + number, "sequence": f'["{100 + number}","{100 + number}"]'}
    after = {"id": number, "amount": amount}
    envelope = {"before": None, "after": after, "source": source, "op": "c", "ts_ms": 1}
    return json.dumps({"id": number}).encode(), json.dumps(envelope).encode()


async def test_from_a_topic_that_comes_late_to_bundles_and_a_redriven_dead_letter(
    kafka_bootstrap: str, redis_url: str, tmp_path: Path, start: Start
) -> None:
    place = Place(tmp_path, kafka_bootstrap, redis_url)
    worker = start(place, "--processes", "2")
    await eventually(lambda: f"waiting for {place.topic}" in place.told(), timeout_s=60)
    await make_topic(kafka_bootstrap, place.topic, 2, **{"cleanup.policy": "compact"})
    async with AIOKafkaProducer(bootstrap_servers=kafka_bootstrap) as producer:
        for number in range(20):
            key, value = change(place, number, f"{number}.50")
            await producer.send_and_wait(place.topic, value, key=key)
        await producer.send_and_wait(place.topic, b"not json", key=b'{"id": 7}')

    def shown() -> list[Any]:
        answers = place.run("get", place.context, "0", "7", "19", "--json").stdout.splitlines()
        return [(json.loads(answer)["bundle"] or {}).get("amount") for answer in answers]

    await eventually(shown, lambda amounts: amounts == ["0.50", "7.50", "19.50"], timeout_s=60)
    (letter,) = await eventually(lambda: place.dlq("list"), timeout_s=60)
    assert letter["topic"] == place.topic and "JSON" in letter["reason"] and letter["bundle_keys"] == ["7"]
    (whole,) = place.dlq("show", str(letter["number"]))
    assert whole["value"] == "bm90IGpzb24="
    (again,) = place.dlq("redrive", str(letter["number"]), code=1)
    (failed,) = again["failed"]
    assert again["redriven"] == 0 and (failed["reason"], failed["attempts"]) == (letter["reason"], 1)
    (left,) = place.dlq("list")
    assert left["state"] == "failed", "a record that still does not work is not set aside twice"

    killed = int(re.findall(r'"process": (\d+)', place.told())[0])
    os.kill(killed, signal.SIGKILL)
    await eventually(lambda: "starting it again" in place.told(), timeout_s=60)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(40) == 0
    assert "Traceback" not in place.told()


def test_a_kafka_that_is_down_is_waited_for_with_one_line(redis_url: str, tmp_path: Path, start: Start) -> None:
    address = f"127.0.0.1:{choose_port()}"
    place = Place(tmp_path, address, redis_url)
    worker = start(place)
    eventually_sync(lambda: f"Kafka at {address} does not answer" in place.told(), timeout_s=60)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(40) == 0
    assert place.told().count("does not answer") == 1 and "Traceback" not in place.told()


def test_a_wrong_password_ends_with_one_message(
    kafka_bootstrap: str, make_redis: Callable[..., Any], tmp_path: Path, start: Start
) -> None:
    redis = make_redis(password="right")
    place = Place(tmp_path, kafka_bootstrap, f"redis://:wrong@127.0.0.1:{redis.port}/0")
    worker = start(place)
    assert worker.wait(60) == 3
    assert place.told().count("Redis refuses") == 1 and "Traceback" not in place.told()


def test_an_unknown_context_is_a_usage_error(tmp_path: Path) -> None:
    place = Place(tmp_path, "127.0.0.1:1", "redis://127.0.0.1:1/0")
    done = place.run("worker", "nothing")
    assert done.returncode == 2
    assert "'nothing'" in done.stderr and place.context in done.stderr and "Traceback" not in done.stderr


def test_faust_finds_the_app_by_its_module(tmp_path: Path) -> None:
    place = Place(tmp_path, "127.0.0.1:1", "redis://127.0.0.1:1/0")
    environment = {**os.environ, "CTXPIPE_CONFIG": str(tmp_path / "ctxpipe.yaml"), "CTXPIPE_CONTEXT": place.context}
    environment["PYTHONPATH"] = os.getcwd()
    command = [sys.executable, "-m", "faust", "-A", "pipeline.streams.app", "agents"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert "denormalise" in done.stdout and "rebuild" in done.stdout
