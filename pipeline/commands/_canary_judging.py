"""What canaries look like to somebody who only reads, such as the collector; without clock and without I/O."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import msgspec


class Shown(NamedTuple):
    """A row as a lookup shows it."""

    slot: int
    slots: tuple[int, ...]
    partition: int | None
    number: int
    written_us: int


class CanarySeen(msgspec.Struct, frozen=True, kw_only=True):
    """One source's canary at one address of the lookup service. `age_s` of the oldest of its rows, by the asker's
    clock, None where no row is there; `late`: Kafka partitions, as far as they are known, else slots."""

    source: str
    context: str
    url: str
    up: bool
    age_s: float | None
    limit_s: float
    number: int | None
    rows: int
    late: tuple[str, ...] = ()
    reason: str = ""

    def as_dict(self) -> dict[str, object]:
        shown: dict[str, object] = msgspec.to_builtins(self)
        return shown


def judge_shown(source: str, context: str, url: str, limit_s: float, rows: Iterable[Shown], now_us: int) -> CanarySeen:
    """What somebody says who only reads. The clock of who wrote may be ahead: no age is below 0."""
    by_slot = {row.slot: row for row in rows}
    expected = sorted({slot for row in by_slot.values() for slot in row.slots})
    ages = {slot: max(0.0, (now_us - row.written_us) / 1e6) for slot, row in by_slot.items() if slot in expected}
    late = [slot for slot in expected if ages.get(slot, limit_s + 1) > limit_s]
    age_s = max(ages.values(), default=None)
    number = min((row.number for row in by_slot.values()), default=None)
    if not by_slot:
        reason = "no row of the canary is there: was it written, and does the source's connector capture its table?"
    elif late:
        of = "" if len(late) == len(expected) else f" {len(late)} of {len(expected)} rows:"
        reason = (
            f"{of} the row shown was written {age_s or 0.0:.0f} s ago; late, or `ctxpipe canary` does not run".strip()
        )
    else:
        reason = ""
    return CanarySeen(
        source=source,
        context=context,
        url=url,
        up=bool(by_slot) and not late,
        age_s=age_s,
        limit_s=limit_s,
        number=number,
        rows=len(expected),
        late=tuple(_name_of(slot, by_slot.get(slot)) for slot in late),
        reason=reason,
    )


def _name_of(slot: int, row: Shown | None) -> str:
    return f"row {slot}" if row is None or row.partition is None else f"partition {row.partition}"
