"""One line → the records of its row, or a letter that says why it is none."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import msgspec

from connectors.jsonlines.config import FilesConfig
from connectors.jsonlines.files import Line, Listed, LogFile
from connectors.records import Order, TableRecords
from connectors.set_aside import SetAside, letter_record
from connectors.source import SourceRecord

SHOWN_BYTES_MAX = 10_000
_ROW = msgspec.json.Decoder(dict[str, Any])
_TYPES = {str: "text", int: "integer", float: "number", bool: "boolean", dict: "object", list: "array"}
_ENCODE = msgspec.json.Encoder().encode


class TableLines:
    """Lines of one table. `caught_up` tells whether everything written before has been read as well: rows of a backlog
    go out as snapshot rows, which move no watermark.
    """

    def __init__(self, source: str, table: str, config: FilesConfig) -> None:
        self.records = TableRecords(source, table)
        self._source = source
        self._table = table
        self._config = config

    def of_line(self, file: LogFile, line: Line, order: Order, time_us: int, caught_up: bool) -> list[SourceRecord]:
        if line.content is None:
            return [self._letter(file, line, "The line is longer than line_bytes_max.")]
        try:
            row = _ROW.decode(line.content)
            key = self._key(row)
            if self._config.deleted and row.get(self._config.deleted) is True:
                return self.records.deleted(key, order, time_us if caught_up else 0)
            write = self.records.written if caught_up else self.records.snapshot_row
            return write(key, row, order, time_us)
        except (ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
            return [self._letter(file, line, f"The line is no row: {error}")]

    def _key(self, row: dict[str, Any]) -> dict[str, Any]:
        key = {column: row.get(column) for column in self._config.key}
        wrong = [column for column, value in key.items() if value is None or isinstance(value, dict | list)]
        if wrong:
            raise ValueError(f"the key column {wrong[0]} has no value that can be a key")
        return key

    def _letter(self, file: LogFile, line: Line, reason: str) -> SourceRecord:
        shown = base64.b64encode(line.shown[:SHOWN_BYTES_MAX]).decode()
        place = f"{file.position.name} up to byte {line.end}"
        letter = SetAside(
            reason=f"{reason} ({place})",
            topic=self.records.topic,
            table=self._table,
            size=len(line.shown),
            row={"line": shown},
        )
        return letter_record(self._source, letter, _ENCODE({"file": file.identity, "end": line.end}))


def columns_of(listed: Sequence[Listed]) -> dict[str, str]:
    """Column → type of the newest file's first line; {} where there is none that is a row."""
    if not listed:
        return {}
    try:
        with listed[-1].path.open("rb") as file:
            row = _ROW.decode(file.readline())
    except (OSError, ValueError, msgspec.MsgspecError):
        return {}
    return {column: _TYPES.get(type(value), "null") for column, value in row.items()}
