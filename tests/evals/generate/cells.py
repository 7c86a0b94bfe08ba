"""Replay cases of a wide-column table: an hour's weather, whose columns come one by one, late, and in the wrong order.

What a row is, is worked out from all writes so far: of each column the one with the latest time of writing, unless the
row was deleted after that.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

import msgspec

from pipeline.evaluation.digests import digest_of
from schemas.mutation import Cell, Mutation, MutationSource, encode_mutation
from tests.evals.generate.flights import Row, rows_of
from tests.evals.generate.values import CaseLine, case, check

KEY = ("origin", "time_hour")
COLUMNS = ("temp", "humid", "wind_speed", "visib")
TWINS = ["redelivered", "reordered", "restarted"]
AIRPORTS = ("EWR", "JFK", "LGA")
BEGAN_US = 1_700_000_000_000_000
MINUTE_US = 60_000_000
_SOURCE = MutationSource("scylla", "sky", "sky", "weather")


@dataclass
class CellLog:
    """`written`: per key, (time of writing, columns; None: the row was deleted)."""

    records: list[dict[str, Any]] = field(default_factory=list)
    written: dict[tuple[str, str], list[tuple[int, Row | None]]] = field(default_factory=dict)
    moments: list[tuple[int, str, str, dict[str, str]]] = field(default_factory=list)

    def write(self, row: Row, at_us: int, columns: tuple[str, ...]) -> int:
        """Gives the number of the record."""
        values = {name: row[name] for name in columns}
        self._note(row, at_us, values)
        return self._append(row, Mutation(cells={name: Cell(at_us, value) for name, value in values.items()}), at_us)

    def delete(self, row: Row, at_us: int) -> int:
        self._note(row, at_us, None)
        return self._append(row, Mutation(deleted=at_us), at_us)

    def again(self, number: int) -> None:
        """Changes nothing."""
        self._add(dict(self.records[number]))

    def moment(self, name: str, why: str) -> None:
        self.moments.append((len(self.records), name, why, self._expected()))

    def _note(self, row: Row, at_us: int, values: Row | None) -> None:
        self.written.setdefault((row["origin"], row["time_hour"]), []).append((at_us, values))

    def _append(self, row: Row, mutation: Mutation, at_us: int) -> int:
        key, value = encode_mutation(_SOURCE, {name: row[name] for name in KEY}, mutation, at_us // 1000)
        decode = msgspec.json.decode
        return self._add({"key": decode(key), "value": decode(value)})

    def _add(self, told: dict[str, Any]) -> int:
        partition = crc32(msgspec.json.encode(told["key"])) % 2
        offset = sum(record["partition"] == partition for record in self.records)
        place = {"topic": "sky.sky.weather", "partition": partition, "offset": offset}
        told = {name: value for name, value in told.items() if name in ("key", "value")}
        self.records.append({**place, "timestamp_ms": BEGAN_US // 1000 + len(self.records), **told})
        return len(self.records) - 1

    def _expected(self) -> dict[str, str]:
        found = {}
        for key, writes in self.written.items():
            row = row_of(key, writes)
            found[f"weather/{key[0]}|{key[1]}"] = "" if row is None else digest_of(row)
        return found


def row_of(key: tuple[str, str], writes: list[tuple[int, Row | None]]) -> Row | None:
    """None: nothing of it is left."""
    deleted_us = max((at_us for at_us, values in writes if values is None), default=-1)
    row: Row = {"origin": key[0], "time_hour": key[1], **dict.fromkeys(COLUMNS)}
    newest = dict.fromkeys(COLUMNS, deleted_us)
    for at_us, values in writes:
        for name, value in (values or {}).items():
            if at_us > newest[name]:
                newest[name], row[name] = at_us, value
    return row if any(row[name] is not None for name in COLUMNS) else None


def logs() -> dict[str, CellLog]:
    return {f"sky-{airport.lower()}": _log(airport) for airport in AIRPORTS}


def cases() -> Iterator[CaseLine]:
    for name, log in logs().items():
        for until, moment, why, expected in log.moments:
            yield case(
                f"replay/{name}/{moment}",
                "replay",
                why,
                name,
                [check("bundles", expected)],
                context={"events": f"events/{name}.jsonl", "until": until},
                twins=TWINS,
            )


def _log(airport: str) -> CellLog:
    hours = [row for row in rows_of("weather") if row["origin"] == airport and all(row[one] for one in COLUMNS)][:6]
    first, second, third, *later = hours
    log, now_us = CellLog(), BEGAN_US
    temperature = log.write(first, now_us, ("temp",))
    log.write(second, now_us, ("temp", "humid"))
    log.moment("one-column", "a row is there with its first column, and the others are null, not guessed")
    log.write(first, now_us + MINUTE_US, ("humid", "wind_speed", "visib"))
    log.write(third, now_us + MINUTE_US, COLUMNS)
    log.moment("more-columns", "columns that come later join those that were there")
    corrected = {**first, "temp": second["temp"]}
    log.write(corrected, now_us + 3 * MINUTE_US, ("temp",))
    log.write({**first, "temp": third["temp"]}, now_us + 2 * MINUTE_US, ("temp",))
    log.moment("late-write", "a write that is older than what is there changes nothing, although it comes last")
    log.again(temperature)
    log.moment("older-again", "the first temperature does not come back when its write does")
    log.delete(second, now_us + 4 * MINUTE_US)
    log.moment("deleted", "a deleted hour is gone")
    log.write(second, now_us + 3 * MINUTE_US, ("visib",))
    log.moment("no-resurrection", "what was written before the deletion and comes after it brings nothing back")
    log.write(second, now_us + 5 * MINUTE_US, ("wind_speed",))
    for row in later:
        log.write(row, now_us + 6 * MINUTE_US, COLUMNS)
    log.moment("written-anew", "a row that is written after its deletion has what was written then, and nothing older")
    return log
