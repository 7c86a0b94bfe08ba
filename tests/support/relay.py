"""A small deployment beside a source, for the kit's own tests: an outbox file → a topic, as a process of its own.

`python -m tests.support.relay FOLDER TOPIC BOOTSTRAP [FAULT]`. Each line of FOLDER/outbox.jsonl is [id, row or null].
How far they are in Kafka is stored after Kafka has them. A fault makes it break one promise; the kit must find which.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaProducer

from schemas.envelope import Encoded, encode
from schemas.event import ChangeEvent, Operation, version_of

POLL_S = 0.02
FAULTS = ("loses", "reorders", "drops_nulls", "forgets_tombstones", "leaks", "scatters", "disguises", "babbles")


class Relay:
    def __init__(self, folder: Path, topic: str, fault: str) -> None:
        self._outbox, self._place = folder / "outbox.jsonl", folder / "place.json"
        self._topic, self._fault = topic, fault

    async def run(self, producer: AIOKafkaProducer) -> None:
        done, backlog = self._stored()
        if self._fault == "loses" and backlog is not None:
            done += 1  # what it was about to send when it was killed
        quiet = 0
        while True:
            lines = self._outbox.read_bytes().split(b"\n")[:-1]  # the last may still be written
            if backlog is None:
                backlog = len(lines)
            new = list(enumerate(lines))[done:]
            quiet = 0 if new else quiet + 1
            if self._fault == "reorders":
                new.reverse()
            if self._fault == "babbles" and quiet > 10 and done:
                new = [(done - 1, lines[done - 1])]
            for number, line in new:
                await self._send(producer, number, *json.loads(line), old=number < backlog)
            done = len(lines)
            self._store(done, backlog)
            await asyncio.sleep(POLL_S)

    async def _send(self, producer: AIOKafkaProducer, number: int, key: int, row: Any, *, old: bool) -> None:
        if row is not None and self._fault == "drops_nulls":
            row = {name: value for name, value in row.items() if value is not None}
        said = old and self._fault != "disguises"
        operation = Operation.DELETE if row is None else Operation.SNAPSHOT if said else Operation.UPDATE
        schema, table = self._topic.split(".")[-2:]
        event = ChangeEvent(
            source="relay",
            table=f"{schema}.{table}",
            operation=operation,
            key={"id": key},
            row=row,
            version=version_of(number + 1, number + 1),
            commit_time_us=time.time_ns() // 1000,
        )
        for one in encode(event, "outbox", time.time_ns() // 1_000_000, snapshot="true" if said else "false"):
            await self._produce(producer, one, number)

    async def _produce(self, producer: AIOKafkaProducer, one: Encoded, number: int) -> None:
        if one.value is None and self._fault == "forgets_tombstones":
            return
        partition = number % 2 if self._fault == "scatters" else None
        await producer.send_and_wait(self._topic, one.value, key=one.key, partition=partition)

    def _stored(self) -> tuple[int, int | None]:
        try:
            done, backlog = json.loads(self._place.read_text())
        except FileNotFoundError:
            return 0, None
        return done, backlog

    def _store(self, done: int, backlog: int) -> None:
        partial = self._place.with_suffix(".partial")
        partial.write_text(json.dumps([done, backlog]))
        partial.replace(self._place)


async def _main(folder: str, topic: str, bootstrap: str, fault: str = "") -> None:
    async with AIOKafkaProducer(bootstrap_servers=bootstrap) as producer:
        await Relay(Path(folder), topic, fault).run(producer)


if __name__ == "__main__":
    if "leaks" in sys.argv:
        subprocess.Popen(["sleep", "20"])
    asyncio.run(_main(*sys.argv[1:]))
