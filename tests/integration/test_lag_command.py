"""`ctxpipe lag` and `ctxpipe collector` as a person runs them, with groups of ours and of others on a real Kafka."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import struct
import subprocess
import sys
import termios
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from deploy.local.processes import choose_port
from schemas.topics import consumer_group
from tests.support.cli import ROOT, ctxpipe
from tests.support.eventually import eventually, eventually_sync
from tests.support.lag_world import Consumer, commit, writing
from tests.support.streams import make_topic, new_name

pytestmark = [pytest.mark.servers, pytest.mark.timeout(180)]

SPEC = """
context: {context}
version: 1
root: order
entities:
  order: {{source: shop, table: public.orders, key: [id]}}
fields: [id, amount]
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a command of ctxpipe in tmp_path; ends it after the test."""
    started: list[subprocess.Popen[str]] = []

    def begin(*words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "pipeline.cli", *words]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=pipe, stderr=pipe, text=True))
        return started[-1]

    yield begin
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def fetched(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as answer:
        return str(answer.read().decode())


def series(page: str, name: str) -> dict[tuple[str, ...], float]:
    """Values of a metric by its labels' values, sorted by the labels' names."""
    families = text_string_to_metric_families(page)
    samples = [sample for family in families for sample in family.samples if sample.name == name]
    return {tuple(value for _, value in sorted(sample.labels.items())): sample.value for sample in samples}


def configure(folder: Path, bootstrap: str, context: str, **collector: Any) -> None:
    section = {"interval_s": 0.3, "commit_interval_s": 0.3, "partitions": True, **collector}
    section["groups"] = [f"*{context}*"]
    config = {
        "kafka": {"bootstrap_servers": bootstrap},
        "redis": {"url": "redis://127.0.0.1:1"},
        "contexts": ["one.context.yaml"],
        "collector": section,
    }
    (folder / "ctxpipe.yaml").write_text(json.dumps(config))
    (folder / "one.context.yaml").write_text(SPEC.format(context=context))


async def test_a_collector_publishes_answers_and_forgets(
    kafka_bootstrap: str, tmp_path: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    context, topic = new_name("flight"), new_name("orders")
    ours, others = consumer_group(context, 1), f"others-{context}"
    port = choose_port()
    url = f"http://127.0.0.1:{port}"
    configure(tmp_path, kafka_bootstrap, context, port=port, url=url, scrape=[f"{url}/metrics"])
    await make_topic(kafka_bootstrap, topic, 2)
    async with writing(kafka_bootstrap, topic, 2) as writer:
        await writer.write(500)
    await commit(kafka_bootstrap, ours, {(topic, 0): 250, (topic, 1): 250})
    await commit(kafka_bootstrap, others, {(topic, 0): 100, (topic, 1): 0})
    collector = start("collector")

    def page() -> str:
        return fetched(f"{url}/metrics")

    refused = (urllib.error.URLError, ConnectionError)
    stopped = await eventually(
        lambda: series(page(), "ctxpipe_group_status"),
        lambda found: found.get((others, "STOP")) == 1,
        timeout_s=30,
        ignore=refused,
        what="the group without members is STOP",
    )
    assert stopped[others, "OK"] == 0 and stopped[ours, "OK"] == 1
    text = page()
    assert series(text, "ctxpipe_group_lag_records") == {(ours, topic): 0, (others, topic): 400}
    seconds = series(text, "ctxpipe_group_lag_seconds")
    assert seconds[ours, topic] == 0 and 0 < seconds[others, topic] < 60
    assert series(text, "ctxpipe_group_lag_seconds_known")[others, topic] == 1
    assert series(text, "ctxpipe_partition_lag_records")[others, "1", topic] == 250
    assert series(text, "ctxpipe_group_members") == {(ours,): 0, (others,): 0}
    parts = series(text, "ctxpipe_collector_up")
    assert parts["kafka",] == 1 and parts["pages",] == 1 and series(text, "ctxpipe_collector_cpu_seconds")
    assert all(fetched(f"{url}/{probe}") == "ok\n" for probe in ("livez", "readyz", "startupz"))

    report = json.loads(fetched(f"{url}/lag"))
    assert [one["group"] for one in report["groups"]] == [others, ours], "the worst first"
    assert report["groups"][1]["role"] == "worker" and report["groups"][1]["context"] == context

    done = ctxpipe("lag", folder=tmp_path)
    assert done.code == 0 and "looking" not in done.err and "STOP" in done.out and "400" in done.out
    done = ctxpipe("lag", "--explain", folder=tmp_path)
    assert done.code == 1 and f"group {others}: is not running" in done.out, done.out
    assert "runbook: A group has stopped" in done.out and "nobody works at it" in done.out
    done = ctxpipe("lag", "--explain", "--group", ours, folder=tmp_path)
    assert done.code == 0 and "All is well: 1 group," in done.out, done.out

    watching = start("lag", "--watch", "--json", "--group", others)
    assert watching.stdout is not None
    assert json.loads(watching.stdout.readline())["groups"][0]["status"] == "STOP"
    watching.send_signal(signal.SIGINT)
    assert watching.wait(10) == 0

    screen = at_a_terminal(tmp_path, "lag", "--watch", until=lambda text: "STOP" in text and "█" in text)
    assert others in screen.replace("\n", "") and "Consumer groups" in screen

    delete_groups(kafka_bootstrap, others)
    await eventually(lambda: others not in page(), timeout_s=30, what="no series of a deleted group")
    collector.send_signal(signal.SIGTERM)
    assert collector.wait(15) == 0 and "Traceback" not in (collector.stderr.read() if collector.stderr else "")
    done = ctxpipe("lag", "--json", folder=tmp_path)
    assert "no collector answers" in done.err and json.loads(done.out)["groups"][0]["group"] == ours
    done = ctxpipe("lag", "--url", url, folder=tmp_path)
    assert done.code == 3 and "looks by itself" in done.told()[0]


async def test_lag_looks_by_itself_and_names_what_stands(kafka_bootstrap: str, tmp_path: Path) -> None:
    context, topic = new_name("flight"), new_name("orders")
    group = f"frozen-{context}"
    configure(tmp_path, kafka_bootstrap, context)
    await make_topic(kafka_bootstrap, topic, 1)
    consumer = Consumer(tmp_path, kafka_bootstrap, topic, group, rate=5_000, session_timeout_ms=60_000)
    try:
        async with writing(kafka_bootstrap, topic) as writer:
            await writer.write(20)
            await eventually(lambda: consumer.committed()[-1:], lambda last: last and last[0][2] == 20, timeout_s=30)
            consumer.freeze()
            await writer.write(1000)
        done = ctxpipe("lag", "--json", "--hot-keys", "--group", group, folder=tmp_path)
        document = json.loads(done.out)
        (found,) = document["groups"]
        assert (found["lag_records"], found["members"], found["state"]) == (1000, 1, "Stable")
        assert document["hot_keys"][0]["of_records"] == 1000
        done = ctxpipe("lag", "--explain", folder=tmp_path)
        assert done.code == 1 and "stands still" in done.out and f"{topic}/0 at offset 20" in done.out, done.out
    finally:
        consumer.end()
    eventually_sync(lambda: consumer.process.poll() is not None)


def test_without_kafka_it_says_so(tmp_path: Path) -> None:
    configure(tmp_path, f"127.0.0.1:{choose_port()}", "flight")
    done = ctxpipe("lag", "--for", "1", folder=tmp_path)
    assert done.code == 3 and "does not answer" in done.told()[-1], done.err


def at_a_terminal(folder: Path, *words: str, until: Callable[[str], bool]) -> str:
    """What a command has written to a terminal of 160 columns when it looked as wanted; it is ended by Ctrl-C."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 160, 0, 0))
    # A runner of tests may have set the size of another terminal.
    size = {"COLUMNS": "160", "LINES": "50"}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color", **size}
    command = [sys.executable, "-m", "pipeline.cli", *words]
    process = subprocess.Popen(command, cwd=folder, env=environment, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    os.set_blocking(ours, False)
    text = ""

    def read() -> str:
        nonlocal text
        with contextlib.suppress(BlockingIOError, OSError):
            text += os.read(ours, 1 << 20).decode(errors="replace")
        return text

    try:
        eventually_sync(read, until, timeout_s=40, what="the live view")
        process.send_signal(signal.SIGINT)
        assert process.wait(15) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        os.close(ours)
    return text


def delete_groups(bootstrap: str, *groups: str) -> None:
    import asyncio

    from aiokafka.admin import AIOKafkaAdminClient
    from aiokafka.protocol.admin import DeleteGroupsRequest

    async def delete() -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
        await admin.start()
        try:
            for group in groups:
                node = await admin.find_coordinator(group)
                answer = await admin._send_request(DeleteGroupsRequest([group]), node)
                assert all(code == 0 for _, code in answer.results), answer
        finally:
            await admin.close()

    import threading

    thread = threading.Thread(target=lambda: asyncio.run(delete()))
    thread.start()
    thread.join()
