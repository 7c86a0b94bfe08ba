"""kill -9 for the suite: the source runs in a process of its own (victim.py), which ends without a word."""

from __future__ import annotations

import asyncio
import base64
import os
import sys
from typing import Any

import msgspec

from connectors.conformance.harness import NAME
from connectors.conformance.limits import Limits
from connectors.conformance.memory import MemoryPositions, MemorySink
from connectors.conformance.running import Subject
from connectors.source import SourceRecord

START_TIMEOUT_S = 60.0
"""For the first batch: the interpreter starts, too."""
LINE_BYTES_MAX = 64 << 20


class Killed:
    """Plays Kafka and the position store for the victim: what it says is delivered, unless it is killed before."""

    def __init__(self, subject: Subject, sink: MemorySink, positions: MemoryPositions) -> None:
        self._subject = subject
        self._sink = sink
        self._positions = positions

    async def run(self, batches: int, *, store_last: bool) -> None:
        """Kills it after so many batches; the last one's position is stored before, or not."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "connectors.conformance.victim"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
            limit=LINE_BYTES_MAX,
        )
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(msgspec.json.encode(await self._order()) + b"\n")
            for number in range(batches):
                line = await asyncio.wait_for(
                    process.stdout.readline(), Limits.patience_s if number else START_TIMEOUT_S
                )
                assert line, "the source ended in its own process; what it says stands in stderr"
                position = await self._take(msgspec.json.decode(line))
                if position is not None and (number < batches - 1 or store_last):
                    await self._positions.save(position)
                    process.stdin.write(b"stored\n")
        finally:
            process.kill()
            await process.wait()

    async def _order(self) -> dict[str, Any]:
        plugin, beside = self._subject.configured.plugin, self._subject.beside
        source, config = plugin.source, plugin.config
        assert source is not None
        return {
            "source": [source.__module__, source.__qualname__],
            "config": [config.__module__, config.__qualname__],
            "section": {**self._subject.harness.section(), "name": NAME},
            "kafka": beside.kafka.bootstrap_servers if beside is not None else None,
            "position": await self._positions.load(),
        }

    async def _take(self, told: dict[str, Any]) -> dict[str, Any] | None:
        """Its position, once the records are delivered."""
        records = [
            SourceRecord(topic, base64.b64decode(key), None if value is None else base64.b64decode(value))
            for topic, key, value in told["records"]
        ]
        await (await self._sink.publish(records))
        position: dict[str, Any] | None = told["position"]
        return position
