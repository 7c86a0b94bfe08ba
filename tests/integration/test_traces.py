"""A row's change from Postgres' commit to the index, in one trace and in the stages' histograms, on real servers."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import psycopg
import pytest
from aiokafka import AIOKafkaProducer
from prometheus_client.parser import text_string_to_metric_families

from tests.support.eventually import eventually
from tests.support.otlp import OtlpReceiver, ReceivedSpan, otlp_receiver
from tests.support.running_pipeline import RunningPipeline

pytestmark = [pytest.mark.servers, pytest.mark.timeout(240)]

SQL = """
DROP TABLE IF EXISTS public.items;
CREATE TABLE public.items (id int PRIMARY KEY, title text NOT NULL);
INSERT INTO public.items SELECT i, 'old title ' || i FROM generate_series(1, 40) i;
"""
STAGES = ("captured", "in_kafka", "applied", "assembled", "in_redis", "embedded", "in_faiss")
FOREIGN = "0af7651916cd43dd8448eb211c80319c"
PORTS = 3


def neighbouring_ports(count: int) -> int:
    """The first of so many free ports in a row."""
    while True:
        with socket.create_server(("127.0.0.1", 0)) as first:
            port: int = first.getsockname()[1]
            try:
                for more in range(1, count):
                    socket.create_server(("127.0.0.1", port + more)).close()
            except OSError:
                continue
            return port


class Shop(RunningPipeline):
    """Items that are embedded; each role shows its metrics."""

    def __init__(self, folder: Path, kafka: str, redis_url: str, dsn: str) -> None:
        super().__init__(folder, kafka, redis_url, dsn, SQL, ("items",))
        self.config["telemetry"] = {"trace_one_batch_in": 1}
        self.write_config()
        entity = {"source": self.source, "table": "public.items", "key": ["id"]}
        self.write_file(
            "context.yaml",
            {
                "context": self.context,
                "version": 1,
                "root": "item",
                "entities": {"item": entity},
                "fields": ["id", "title"],
                "embedding": {"engine": "hash", "dimension": 16, "template": "{{ title }}"},
                "serving": {"max_age_ms": 60_000, "stage_budgets_ms": {"embedded": 1}},
            },
        )
        self.ports: list[int] = []

    def change(self, sql: str) -> None:
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            connection.execute(sql)

    async def start(self) -> None:
        self.ports = [neighbouring_ports(1), (worker := neighbouring_ports(PORTS)), worker + 1, neighbouring_ports(1)]
        self.role("connect", self.source, "--metrics-port", str(self.ports[0]))
        self.role("worker", "--metrics-port", str(worker))
        await self.until_serving(1)
        self.role("serve", "--port", str(self.ports[3]))

    async def shown(self, name: str) -> dict[str, float]:
        """By stage, from whichever role shows it."""
        found: dict[str, float] = {}
        async with httpx.AsyncClient() as client:
            for port in self.ports:
                try:
                    text = (await client.get(f"http://127.0.0.1:{port}/metrics")).text
                except httpx.HTTPError:
                    continue
                samples = [one for family in text_string_to_metric_families(text) for one in family.samples]
                of_ours = [one for one in samples if one.name == name and one.labels.get("context") == self.context]
                found |= {one.labels.get("stage", one.labels.get("source", "")): one.value for one in of_ours}
        return found

    async def updates(self) -> dict[str, float]:
        return await self.shown("ctxpipe_freshness_updates_total")


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[OtlpReceiver]:
    with otlp_receiver() as made:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", made.endpoint)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        yield made


@pytest.fixture
def shop(
    tmp_path: Path, kafka_bootstrap: str, redis_url: str, postgres_dsn: str, receiver: OtlpReceiver
) -> Iterator[Shop]:
    made = Shop(tmp_path, kafka_bootstrap, redis_url, postgres_dsn)
    yield made
    made.stop()


async def test_one_change_is_one_trace_and_one_update_at_each_stage(shop: Shop, receiver: OtlpReceiver) -> None:
    await shop.start()
    await until_live(shop)

    before = await shop.updates()
    for number in range(21, 26):
        shop.change(f"UPDATE items SET title = 'a new title of {number}' WHERE id = {number}")
    expected = {stage: before[stage] + 5 for stage in STAGES}
    await eventually(shop.updates, lambda seen: seen == expected, timeout_s=60, what=f"{expected}")
    assert await shop.shown("ctxpipe_freshness_seconds_count") == expected, "as many as were counted"
    late = await shop.shown("ctxpipe_freshness_late_total")
    assert late == {**dict.fromkeys(STAGES, 0), "embedded": expected["embedded"]}, "nothing is embedded in 1 ms"
    assert (await shop.shown("ctxpipe_freshness_budget_seconds"))["in_redis"] == 60
    (age_s,) = (await shop.shown("ctxpipe_watermark_age_seconds")).values()
    assert 0 <= age_s < 60, "heartbeats move the watermark of an idle table"

    whole = await eventually(lambda: whole_traces(receiver), bool, timeout_s=30, what="a trace up to the index")
    for trace in whole:
        check_way(trace)

    await check_foreign_trace(shop, receiver)


async def until_live(shop: Shop) -> None:
    """A version and its space serve; then changes count, and those of the snapshot and of the time before do not."""
    ready = await eventually(
        shop.updates, lambda seen: set(STAGES) <= set(seen), timeout_s=90, what="each role shows its stages"
    )
    assert ready == dict.fromkeys(STAGES, 0), "40 rows have come this far by the snapshot, and none is an update"
    written = iter(range(1, 10_000))

    async def write() -> dict[str, float]:
        number = next(written)
        shop.change(f"UPDATE items SET title = 'warm up {number}' WHERE id = {number % 20 + 1}")
        return await shop.updates()

    await eventually(write, lambda seen: all(seen.values()), timeout_s=90, what="changes that count at all stages")
    settled: list[dict[str, float]] = [{}]

    async def look() -> bool:
        settled.append(await shop.updates())
        return settled[-1] == settled[-4] if len(settled) > 4 else False

    await eventually(look, bool, timeout_s=60, what="nothing is on its way any more")


async def whole_traces(receiver: OtlpReceiver) -> list[list[ReceivedSpan]]:
    traces = {span.trace for span in receiver.spans if span.name == "index"}
    return [receiver.of_trace(trace) for trace in traces]


def check_way(trace: list[ReceivedSpan]) -> None:
    named = {span.name.split()[0]: span for span in trace}
    assert set(named) == {"capture", "publish", "process", "apply", "assemble", "put", "embed", "index"}, trace
    services = {name: span.service for name, span in named.items()}
    assert services == {
        "capture": "ctxpipe-connect", "publish": "ctxpipe-connect", "process": "ctxpipe-worker",
        "apply": "ctxpipe-worker", "assemble": "ctxpipe-worker", "put": "ctxpipe-worker",
        "embed": "ctxpipe-embedder", "index": "ctxpipe-serve",
    }  # fmt: skip
    assert named["capture"].parent == "" and named["publish"].parent == named["capture"].span
    assert named["process"].parent == named["publish"].span and named["embed"].parent == named["process"].span
    assert {named[name].parent for name in ("apply", "assemble", "put")} == {named["process"].span}
    assert named["index"].parent == named["embed"].span
    assert all(trace[0].trace in named[name].links for name in ("process", "embed", "index")), "linked as in a batch"
    ends = [named[name].ended_us for name in ("capture", "apply", "assemble", "put", "index")]
    assert ends == sorted(ends) and named["capture"].began_us < ends[0]
    assert named["process"].began_us < named["embed"].began_us < named["index"].ended_us
    told = {name: value for span in trace for name, value in span.attributes.items()}
    assert str(named["process"].attributes["messaging.destination.name"]).endswith(".public.items")
    assert "title" not in str(told) and not [name for name in told if "message.key" in name]


async def check_foreign_trace(shop: Shop, receiver: OtlpReceiver) -> None:
    """A record of somebody else's that belongs to a trace, and is broken: its spans and its log line say which."""
    producer = AIOKafkaProducer(bootstrap_servers=shop.kafka)
    await producer.start()
    headers = [("traceparent", f"00-{FOREIGN}-b7ad6b7169203331-01".encode())]
    await producer.send_and_wait(
        f"{shop.source}.public.items", b"broken", key=b'{"id":1}', headers=headers, partition=0
    )
    await producer.stop()

    def lines() -> list[dict[str, object]]:
        told = [line for log in shop.folder.glob("*-worker.log") for line in log.read_text().splitlines()]
        entries = [json.loads(line) for line in told if line.startswith("{")]
        return [entry for entry in entries if entry["message"].startswith("set aside")]

    async def look() -> bool:
        return bool(lines()) and any(span.name.startswith("process") for span in receiver.of_trace(FOREIGN))

    await eventually(look, bool, timeout_s=30, what="the span and the log line of the broken record")
    (line,) = lines()
    process = next(span for span in receiver.of_trace(FOREIGN) if span.name.startswith("process"))
    assert process.parent == "b7ad6b7169203331"
    assert (line["trace_id"], line["span_id"], line["context"]) == (FOREIGN, process.span, shop.context)
    assert (line["topic"], line["partition"]) == (f"{shop.source}.public.items", 0)
    assert line["offset"] == process.attributes["messaging.kafka.offset"]
