"""The source over a directory of JSON Lines files: every line a row, in the order of files and of lines in them.

A position is {directory, epoch, read, tables}: `tables` holds, by table, each file's identity and how far it was read;
`read` counts bytes in all; `epoch` is when reading began from nothing, so that rows of an earlier beginning are older.
The version of a row is (epoch and file number, offset behind the line): the same files give the same records.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

from connectors.jsonlines.config import JsonLinesConfig
from connectors.jsonlines.files import directory_identity, list_files
from connectors.jsonlines.lines import TableLines, columns_of
from connectors.jsonlines.tables import TableFiles
from connectors.records import Order, size_of
from connectors.source import Batch, Finding, Position, SourceRecord, TableDescription
from pipeline.core.errors import PositionLost

_NUMBER_BITS = 22
"""Four million files; above them the epoch in milliseconds, so that two beginnings are never one."""
RESET = "`ctxpipe connect {name} --reset` drops all rows and reads what files there are."


class JsonLinesSource:
    """Implements Source, Topics, Checking, Discovering and Resetting."""

    def __init__(self, config: JsonLinesConfig) -> None:
        self._config = config
        self._directory = Path(config.directory)
        self._lines = {name: TableLines(config.name, name, table) for name, table in config.tables.items()}
        self._tables: dict[str, TableFiles] = {}
        self._identity = ""
        self._epoch = 0
        self._read = 0
        self._stored: Position | None = None
        self._to_drop = False
        self._next_beat_s = 0.0

    async def open(self, position: Position | None) -> None:
        self._identity = directory_identity(self._directory)
        self._tables = {name: TableFiles(name, self._directory, table) for name, table in self._config.tables.items()}
        if position is None or position.get("reset"):
            self._epoch, self._to_drop = time.time_ns() // 1_000_000, position is not None
            return
        try:
            self._restore(position)
        except PositionLost as error:
            raise PositionLost(f"{error} {RESET.format(name=self._config.name)}") from error

    async def read(self) -> Batch:
        while True:
            looked_us = time.time_ns() // 1000
            records, caught_up = self._new_records(looked_us)
            position = self._position()
            if records or position != self._stored:
                self._stored = position
                return Batch(records, position, size_of(records), looked_us if caught_up else 0)
            if time.monotonic() >= self._next_beat_s:
                self._next_beat_s = time.monotonic() + self._config.heartbeat_interval_s
                return Batch([self._beat(name, looked_us) for name in self._lines], None)
            await asyncio.sleep(self._config.poll_interval_s)

    async def acknowledge(self, position: Position) -> None:
        """Nothing: files are deleted by whoever rotates them."""

    async def close(self) -> None:
        for table in self._tables.values():
            table.close()

    def table_topics(self) -> list[str]:
        return [lines.records.topic for lines in self._lines.values()]

    def other_topics(self) -> list[str]:
        return []

    def reset_position(self) -> Position:
        return {"reset": True}

    async def discover(self) -> list[TableDescription]:
        return [
            TableDescription(name, columns_of(list_files(self._directory, table.files)), list(table.key))
            for name, table in self._config.tables.items()
        ]

    async def check(self) -> list[Finding]:
        directory_identity(self._directory)
        findings = []
        for name, table in self._config.tables.items():
            listed = list_files(self._directory, table.files)
            missing = [column for column in table.key if listed and column not in columns_of(listed)]
            if missing:
                message = f"the first line of {listed[-1].path.name} has no column {', '.join(missing)}"
                findings.append(Finding("unfit", name, message, f"Mend sources.{self._config.name}.tables.{name}.key."))
            elif not listed:
                findings.append(Finding("note", name, f"no file matches {table.files} yet"))
            else:
                findings.append(Finding("ok", name, f"{len(listed)} files match {table.files}"))
        return findings

    def _new_records(self, looked_us: int) -> tuple[list[SourceRecord], bool]:
        """What came since, about `batch_bytes_max` of it, and whether that was everything."""
        found: list[tuple[TableLines, Any, Any, Order]] = []
        left = self._config.batch_bytes_max
        for name, table in self._tables.items():
            table.look()
            for file, line in table.lines(max(left, 1), self._config.line_bytes_max):
                found.append((self._lines[name], file, line, (self._major(file.position.number), line.end)))
            left -= table.taken
            self._read += table.taken
        caught_up = left > 0
        records = [
            record
            for lines, file, line, order in found
            for record in lines.of_line(file, line, order, looked_us, caught_up)
        ]
        return self._drops(looked_us) + records, caught_up

    def _drops(self, looked_us: int) -> list[SourceRecord]:
        """After a reset: consumers forget the rows of the beginning before."""
        if not self._to_drop:
            return []
        self._to_drop = False
        return [lines.records.truncated((self._major(0), 0), looked_us) for lines in self._lines.values()]

    def _beat(self, name: str, until_us: int) -> SourceRecord:
        return self._lines[name].records.heartbeat((self._major(self._tables[name].next_number), 0), until_us)

    def _major(self, number: int) -> int:
        return self._epoch << _NUMBER_BITS | number

    def _position(self) -> Position:
        tables = {name: table.stored() for name, table in self._tables.items()}
        return {"directory": self._identity, "epoch": self._epoch, "read": self._read, "tables": tables}

    def _restore(self, position: Position) -> None:
        if position["directory"] != self._identity:
            raise PositionLost(f"{self._directory} is another directory than the one that was read before.")
        self._epoch, self._read = position["epoch"], position["read"]
        for name, table in self._tables.items():
            if name in position["tables"]:  # a table added to the configuration begins with its oldest file
                table.restore(position["tables"][name])
        self._stored = position
