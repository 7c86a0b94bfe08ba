"""The harness of tests/support/relay.py: what an author of a connector that is a process of its own would write."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from connectors.conformance.harness import Rows
from connectors.conformance.topics import key_text
from connectors.registry import Plugin, SourceConfig
from tests.support.cli import ROOT
from tests.support.streams import make_topic, new_name


class RelayConfig(SourceConfig):
    connector: Literal["relay"] = "relay"
    directory: str


class RelayTopics:
    plugin = Plugin("relay", "an outbox that a process of its own relays", RelayConfig, None)
    row_bytes_max = 500_000
    fault = ""
    not_applicable: Mapping[str, str] = {
        "Altering": "an outbox has no schema",
        "Beating": "it writes no heartbeats",
        "Duplicating": "each line of the outbox is one change",
        "Examined": "check knows nothing of it",
        "Late": "lines have no times",
        "Rekeying": "a row keeps its id",
        "Restarting": "a file does not go away",
        "Switching": "there is one outbox",
        "Truncating": "rows are deleted one by one",
        "row_bytes_max": "its producer takes requests of 1 MB",
    }

    def __init__(self, folder: Path, kafka: str) -> None:
        self._folder, self._kafka, self._topic = folder, kafka, new_name("relay.public")
        self._rows: Rows = {}
        self._process: subprocess.Popen[bytes] | None = None
        (folder / "outbox.jsonl").touch()

    async def __aenter__(self) -> RelayTopics:
        await make_topic(self._kafka, self._topic, 2)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def section(self) -> dict[str, Any]:
        return {"connector": "relay", "directory": str(self._folder)}

    def topic(self) -> str:
        return self._topic

    def types(self) -> Mapping[str, str]:
        return {}

    async def start(self) -> None:
        words = [sys.executable, "-m", "tests.support.relay", str(self._folder), self._topic, self._kafka, self.fault]
        self._process = await asyncio.to_thread(subprocess.Popen, words, cwd=ROOT, start_new_session=True)

    def alive(self) -> None:
        assert self._process is None or self._process.poll() is None, "the relay ended"

    def _append(self, key: int, row: dict[str, Any] | None) -> None:
        with (self._folder / "outbox.jsonl").open("a") as file:
            file.write(json.dumps([key, row]) + "\n")
        text = key_text({"id": key})
        self._rows.pop(text, None)
        if row is not None:
            self._rows[text] = row

    async def write(self, rows: Mapping[int, str]) -> None:
        for key, v in rows.items():
            self._append(key, {"id": key, "v": v})

    async def rows(self) -> Rows:
        return dict(self._rows)

    async def delete(self, ids: Sequence[int]) -> None:
        for key in ids:
            self._append(key, None)

    def many(self) -> int:
        return 50

    async def write_types(self) -> Rows:
        self._append(1, {"id": 1, "v": "", "n": -(2**63), "x": 5e-324, "b": False, "l": []})
        self._append(2, {"id": 2, "v": '☃ " \n', "n": 2**63 - 1, "x": 1e308, "b": True, "l": [1, None, "x"]})
        return dict(self._rows)

    async def write_nulls(self) -> list[dict[str, Any]]:
        told: list[dict[str, Any]] = [{"id": 1, "v": None}, {"id": 2}]
        for row in told:
            self._append(row["id"], row)
        return told

    async def kill(self, step: int) -> bool:
        if step or self._process is None:
            return False
        self._process.kill()
        self._process.wait()
        await self.start()
        return True

    async def stop(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(10)

    def processes(self) -> list[int]:
        """Those of its session, which its children inherit."""
        assert self._process is not None
        found = subprocess.run(
            ["ps", "-o", "pid=,state=", "-s", str(self._process.pid)], capture_output=True, text=True
        )
        lines = [line.split() for line in found.stdout.splitlines()]
        return [int(pid) for pid, state in lines if not state.startswith("Z")]
