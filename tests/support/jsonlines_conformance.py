"""A directory of JSON Lines files as the conformance kit's harness: a writer that rotates its log."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from connectors.conformance.harness import Rows
from connectors.jsonlines.plugin import PLUGIN
from connectors.source import Position

LOG = "orders.jsonl"


class JsonLinesConformance:
    plugin = PLUGIN

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "logs"
        self.folder.mkdir()
        self._rows: Rows = {}
        self._rotations = 0

    def section(self) -> dict[str, Any]:
        tables = {"files.orders": {"files": f"{LOG}*", "key": ["id"], "deleted": "gone"}}
        limits = {"poll_interval_s": 0.01, "heartbeat_interval_s": 0.1, "batch_bytes_max": 4096}
        return {"connector": "jsonlines", "directory": str(self.folder), "tables": tables, **limits}

    def append(self, *lines: str | bytes, name: str = LOG) -> None:
        with (self.folder / name).open("ab") as file:
            for line in lines:
                file.write((line if isinstance(line, bytes) else line.encode()) + b"\n")
            file.flush()

    async def write(self, rows: Mapping[int, str]) -> None:
        for number, text in rows.items():
            self._rows[f'{{"id":{number}}}'] = {"id": number, "v": text}
        self.append(*(json.dumps({"id": number, "v": text}) for number, text in rows.items()))

    async def rows(self) -> Rows:
        return dict(self._rows)

    def order(self, position: Position) -> tuple[int, int]:
        return position["read"], sum(table["next"] for table in position["tables"].values())

    async def delete(self, ids: Sequence[int]) -> None:
        for number in ids:
            self._rows.pop(f'{{"id":{number}}}', None)
        self.append(*(json.dumps({"id": number, "gone": True}) for number in ids))

    async def write_copies(self, rows: Mapping[int, str]) -> None:
        for _copy in range(3):
            await self.write(rows)

    async def write_nulls(self) -> list[dict[str, Any]]:
        self.append('{"id": 1, "v": null}', '{"id": 2}')
        return [{"id": 1, "v": None}, {"id": 2}]

    async def write_types(self) -> Rows:
        lines = [
            '{"id": 1, "v": "", "n": -9223372036854775808, "x": -1.7976931348623157e308, "b": false, "l": [], "o": {}}',
            '{"id": 2, "v": "\\u2603 \\ud83d\\ude00 \\\\ \\" \\n", "n": 18446744073709551615, "x": 5e-324, "b": true}',
            '{"id": 3, "v": null, "l": [1, null, [2.5]], "o": {"a": {"b": "c"}}}',
        ]
        self.append(*lines)
        return {f'{{"id":{number}}}': json.loads(line) for number, line in enumerate(lines, start=1)}

    async def switch(self) -> None:
        """As logrotate does: every file one number further, the oldest but two away."""
        for number in range(self._rotations, 0, -1):
            os.rename(self.folder / f"{LOG}.{number}", self.folder / f"{LOG}.{number + 1}")
        os.rename(self.folder / LOG, self.folder / f"{LOG}.1")
        self._rotations += 1

    async def foreign_position(self, position: Position) -> Position:
        return {**position, "directory": "1"}

    async def lose(self) -> None:
        (self.folder / LOG).unlink()

    async def bad_sections(self) -> Mapping[str, dict[str, Any]]:
        file = self.folder.with_name("a-file")
        file.touch()
        return {
            "no directory": {**self.section(), "directory": str(self.folder / "no-such-directory")},
            "a file": {**self.section(), "directory": str(file)},
        }


class CutOffJsonLines(JsonLinesConformance):
    """Loses changes in another way: copytruncate."""

    async def lose(self) -> None:
        first = (self.folder / LOG).read_bytes().splitlines(keepends=True)[0]
        (self.folder / LOG).write_bytes(first)
