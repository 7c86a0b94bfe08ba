"""`ctxpipe bench apply`: events per second of one worker process through the flight context, joins and aggregates."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

_SAMPLE_EVENTS = 10_000
_BATCH_RECORDS = 1_000


@click.command("apply")
@click.option(
    "--rows", type=click.IntRange(1_000, 336_776), default=60_000, show_default=True, help="Flights to apply."
)
@click.option("--json", "as_json", is_flag=True, help="A JSON object as the last line.")
@click.option("--dir", "directory", type=click.Path(path_type=Path), default=Path(".ctxpipe/bench-apply"))
def command(rows: int, as_json: bool, directory: Path) -> None:
    """Real Kafka, Redis and one worker process; the flights wait in Kafka before it starts on them."""
    import asyncio
    import json

    result = asyncio.run(_measure(rows, directory))
    if as_json:
        click.echo(json.dumps(result))
        return
    for name, value in result.items():
        click.echo(f"{name:>24}  {value}")


async def _measure(rows: int, directory: Path) -> dict[str, Any]:
    from deploy.demo.harness import Harness
    from pipeline.stores.redis_store import open_stores

    harness = Harness(directory)
    try:
        addresses = harness.up(say=lambda line: click.echo(line, err=True))
        harness.write_config(("flight",))
        small, flights = _events(rows)
        await _publish(addresses.kafka, small)
        stores = await open_stores(harness.redis_settings("flight"))
        worker = harness.role("worker", "flight").start()
        await _applied(stores, worker, len(small))
        worker.stop()
        await _publish(addresses.kafka, flights)
        worker = harness.role("worker", "flight").start()
        elapsed_s, peak_mib = await _timed(stores, worker, len(small), len(flights))
        counted = await _counted(harness, small, flights[:_SAMPLE_EVENTS])
        await stores.close()
        return {"events_per_s": round(len(flights) / elapsed_s), "rss_mib": peak_mib, **counted, "events": len(flights)}
    finally:
        harness.close()


def _events(rows: int) -> tuple[list[Any], list[Any]]:
    """(the four small tables, the flights) as records of the connector."""
    from connectors.source import SourceRecord
    from deploy.demo.data import FLIGHTS, TABLES
    from deploy.demo.events import table_events

    small = [SourceRecord(*event) for table in TABLES if table is not FLIGHTS for event in table_events(table)]
    return small, [SourceRecord(*event) for event in table_events(FLIGHTS, rows)]


async def _publish(bootstrap: str, records: Sequence[Any]) -> None:
    from connectors.publisher import KafkaSettings, Publisher, TopicPlan
    from deploy.demo.data import TABLES
    from deploy.demo.events import SOURCE
    from schemas.topics import table_topic

    topics = [table_topic(SOURCE, f"public.{table.name}") for table in TABLES]
    publisher = Publisher(SOURCE, KafkaSettings(bootstrap_servers=bootstrap), TopicPlan(topics))
    await publisher.start()
    for start in range(0, len(records), 5_000):
        await (await publisher.publish(records[start : start + 5_000]))
    await publisher.stop()


async def _applied(stores: Any, worker: Any, total: int, started: int = -1) -> float:
    """Waits until `total` records are applied; the seconds since more than `started` were."""
    import asyncio
    import time

    first = time.monotonic()
    while True:
        worker.ensure_running()
        positions = (await stores.marks.read_applied()).values()
        done = sum(position.offset for position in positions if position.source)
        if done <= started:
            first = time.monotonic()
        if done >= total:
            return time.monotonic() - first
        await asyncio.sleep(0.02)


async def _timed(stores: Any, worker: Any, before: int, count: int) -> tuple[float, int]:
    """From the first applied flight to the last: without the start of Python and the group's first rebalance."""
    elapsed_s = await _applied(stores, worker, before + count, before)
    return elapsed_s, _peak_mib(worker.pid)


def _peak_mib(supervisor: int) -> int:
    """The greatest resident memory that any worker process of this supervisor ever had."""
    children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
    lines = [line for pid in children for line in Path(f"/proc/{pid}/status").read_text().splitlines()]
    return max(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) // 1024


async def _counted(harness: Any, small: Sequence[Any], flights: Sequence[Any]) -> dict[str, float]:
    """Round trips and writes of the same flow over the same events, counted in this process."""
    from zlib import crc32

    import msgspec

    from deploy.demo.harness import CONTEXTS, PARTITIONS
    from pipeline.flow import Flow
    from pipeline.plan import compile_plan
    from pipeline.stores.redis_store import open_stores
    from schemas.context_file import load_context
    from schemas.record import Record

    settings = msgspec.structs.replace(harness.redis_settings("flight"), context="counted")
    stores = await open_stores(settings)
    plan = compile_plan(load_context(CONTEXTS / "flight.yaml"))
    flow = Flow(plan, stores.rows, stores.relations, stores.bundles, in_order=stores.in_order)
    lanes: dict[tuple[str, int], list[Record]] = {}
    for record in (*small, *flights):
        place = (record.topic, crc32(record.key) % PARTITIONS)
        lane = lanes.setdefault(place, [])
        lane.append(Record(*place, len(lane), record.key, record.value))
    totals = {"batches": 0, "trips": 0, "events": 0, "writes": 0}
    for (topic, _), lane in lanes.items():
        for start in range(0, len(lane), _BATCH_RECORDS):
            report = await flow.process(lane[start : start + _BATCH_RECORDS])
            if topic.endswith(".flights"):
                totals["batches"] += 1
                totals["trips"] += report.round_trips
                totals["events"] += report.events
                totals["writes"] += report.bundles_written + report.fragments_written
    await stores.close()
    return {
        "round_trips_per_batch": round(totals["trips"] / totals["batches"], 1),
        "writes_per_event": round(totals["writes"] / totals["events"], 2),
    }
