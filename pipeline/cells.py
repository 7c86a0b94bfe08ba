"""Mutations → the state of a wide-column row: merging per cell by write timestamp, exactly as Cassandra resolves. Pure.

A state is a join of all that was ever written into the row: merging is commutative, associative and idempotent, so the
order of delivery, repetition and lateness do not matter. Deletions stay in the state as what they are, writes with a
timestamp; a value that a deletion covers becomes a deleted one of the deletion's time.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from pipeline.sortable import encode_value, typed
from schemas.mutation import Bound, Cell, Elements, Marker, Mutation, element_text
from schemas.types import UnknownValue

_NEVER = -(1 << 63)
_VALUE_BITS = 48
_KIND_SHIFT = 52
_TIME_MASK = (1 << 64) - 1


class Tombstone(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A deletion of all rows of a partition between two bounds (None: no bound), of everything written up to `ts`."""

    ts: int
    lower: Bound | None = None
    upper: Bound | None = None


class Collection(msgspec.Struct, frozen=True, gc=False):
    """A multi-cell column: live and removed elements by their key's text, and the time up to which older ones are
    gone. Elements that `cleared` covers are left out: nothing could tell them from never written ones."""

    kind: str
    cleared: int = _NEVER
    elements: dict[str, tuple[Any, Cell]] = {}


class RowState(msgspec.Struct, frozen=True, gc=False):
    """Everything that decides what the row is. `deleted` is the newest deletion of the row, its partition or a range
    that covers it. Cells of columns that no spec lists hold True instead of their value: they only say that the row
    exists (promise 7)."""

    marker: Marker | None = None
    deleted: int = _NEVER
    cells: dict[str, Cell] = {}
    collections: dict[str, Collection] = {}
    key: tuple[Any, ...] = ()
    """The primary key's values, because a row that does not exist has no others."""
    foreign: bool = False
    """The last write came not from the row's own Kafka partition: see pipeline/merging.py."""


EMPTY = RowState()


def merged(state: RowState, mutation: Mutation, listed: frozenset[str]) -> RowState:
    """The state after one write into this row, or one deletion that covers it. The same object when nothing changes."""
    deleted = state.deleted if mutation.deleted is None else max(state.deleted, mutation.deleted)
    marker = _newer_marker(state.marker, mutation.marker)
    cells, collections = state.cells, state.collections
    for column, change in mutation.cells.items():
        if isinstance(change, Elements):
            known = collections.get(column) or Collection(change.kind)
            collections = {**collections, column: _with_elements(known, change, column in listed)}
        else:
            cell = change if column in listed or change.value is None else _without_value(change)
            kept = cells.get(column)
            cells = {**cells, column: cell if kept is None else _winner(kept, cell)}
    after = _covered(RowState(marker, deleted, cells, collections, state.key, state.foreign))
    return state if after == state else after


def expired(state: RowState, now_us: int) -> RowState:
    """What has lived its time becomes a deleted value of the same timestamp, as Cassandra has it."""
    cells = {column: _expired_cell(cell, now_us) for column, cell in state.cells.items()}
    collections = {
        column: msgspec.structs.replace(
            found, elements={key: (name, _expired_cell(cell, now_us)) for key, (name, cell) in found.elements.items()}
        )
        for column, found in state.collections.items()
    }
    marker = state.marker
    if marker is not None and marker.expires is not None and marker.expires <= now_us:
        marker = Marker(marker.ts, 0)
    after = RowState(marker, state.deleted, cells, collections, state.key, state.foreign)
    return state if after == state else after


def next_expiry_us(state: RowState) -> int | None:
    """When the first value that lives for a time will have lived it; None: never."""
    times = [cell.expires for cell in _all_cells(state) if cell.value is not None]
    if state.marker is not None and state.marker.expires:
        times.append(state.marker.expires)
    return min((time for time in times if time is not None), default=None)


def exists(state: RowState) -> bool:
    """A row is there while its marker is, or any value in it."""
    marker = state.marker
    if marker is not None and marker.ts > state.deleted and marker.expires != 0:
        return True
    return any(cell.value is not None for cell in _all_cells(state))


def values_of(state: RowState, columns: Sequence[str]) -> list[Any]:
    """The row in this order of columns, the primary key's first; empty for a row that does not exist."""
    if not exists(state):
        return []
    return [*state.key, *(_value(state, column) for column in columns[len(state.key) :])]


def version_of_state(state: RowState) -> str:
    """32 hex digits that grow with every merge that changes something: a measure of the state, not of how it came
    about, so that a replay gives the same. Equal only where values of one timestamp agree in their first bytes."""
    times = [max(state.deleted, 0), state.marker.ts if state.marker else 0]
    ties = _marker_tie(state.marker)
    for cell in state.cells.values():
        times.append(cell.ts)
        ties += _tie(cell)
    for found in state.collections.values():
        # Elements that a deletion covers leave, so that only the newest of them can count.
        newest = max((cell.ts for _, cell in found.elements.values()), default=found.cleared)
        times += [found.cleared, max(found.cleared, newest)]
        ties += len(found.elements) + sum(cell.value is None for _, cell in found.elements.values())
    return f"{sum(max(time, 0) for time in times) & _TIME_MASK:016x}{ties & _TIME_MASK:016x}"


def covers(tombstone: Tombstone, clustering: Sequence[Any], types: Sequence[str | None]) -> bool:
    """Whether a row with these clustering values lies between the bounds. `types`: declared types, None: by value."""
    lower, upper = tombstone.lower, tombstone.upper
    if lower is not None:
        order = _compared(clustering, lower, types)
        if order < 0 or (order == 0 and not lower.inclusive):
            return False
    if upper is not None:
        order = _compared(clustering, upper, types)
        if order > 0 or (order == 0 and not upper.inclusive):
            return False
    return True


def newest_cover(tombstones: Iterable[Tombstone], clustering: Sequence[Any], types: Sequence[str | None]) -> int | None:
    """The newest of the deletions that cover such a row."""
    return max((stone.ts for stone in tombstones if covers(stone, clustering, types)), default=None)


# ---- how two writes of one cell are resolved


def _winner(left: Cell, right: Cell) -> Cell:
    """As Cassandra's Cells.resolveRegular: newer, else deleted, else expiring, else later expiry, else larger bytes."""
    if left.ts != right.ts:
        return left if left.ts > right.ts else right
    left_rank, right_rank = _rank(left), _rank(right)
    if left_rank != right_rank:
        return left if left_rank > right_rank else right
    if left.value is None:
        return left
    if left.expires != right.expires:
        return left if (left.expires or 0) > (right.expires or 0) else right
    return left if value_bytes(left) >= value_bytes(right) else right


def _rank(cell: Cell) -> int:
    return 2 if cell.value is None else 1 if cell.expires is not None else 0


def value_bytes(cell: Cell) -> bytes:
    """Bytes that compare as the value's bytes in CQL do: big-endian two's complement, IEEE 754, UTF-8."""
    value = cell.value
    if cell.raw is not None:
        return bytes.fromhex(cell.raw)
    if value.__class__ is bool:
        return b"\x01" if value else b"\x00"
    if value.__class__ is int:
        return int(value).to_bytes(16, "big", signed=True)
    if value.__class__ is float:
        return struct.pack(">d", value)
    if value.__class__ is str:
        return value.encode("utf-8", "surrogatepass")
    return msgspec.json.encode(value)


def _newer_marker(left: Marker | None, right: Marker | None) -> Marker | None:
    if left is None or right is None:
        return left or right
    if left.ts != right.ts:
        return left if left.ts > right.ts else right
    ended = [marker for marker in (left, right) if marker.expires == 0]
    if ended:
        return ended[0]
    return left if (left.expires or 0) >= (right.expires or 0) else right


def _with_elements(known: Collection, change: Elements, listed: bool) -> Collection:
    elements = dict(known.elements)
    for key, cell in change.elements:
        text = element_text(key)
        cell = cell if listed or cell.value is None else _without_value(cell)
        kept = elements.get(text)
        elements[text] = (key if listed else None, cell if kept is None else _winner(kept[1], cell))
    return Collection(
        known.kind, max(known.cleared, change.cleared if change.cleared is not None else _NEVER), elements
    )


def _without_value(cell: Cell) -> Cell:
    return Cell(cell.ts, True, cell.expires, _digest(cell))


def _digest(cell: Cell) -> str:
    """Decides between two unlisted values of one timestamp the same way everywhere, and tells nothing of them."""
    value = b"" if isinstance(cell.value, UnknownValue) else value_bytes(cell)
    return hashlib.blake2b(value, digest_size=8).hexdigest()


def _covered(state: RowState) -> RowState:
    """What a deletion covers is gone, and stays in the state with the deletion's time where its column is known."""
    gone = state.deleted
    if gone == _NEVER and not state.collections:
        return state
    cells = {column: cell if cell.ts > gone else Cell(gone) for column, cell in state.cells.items()}
    collections = {}
    for column, found in state.collections.items():
        cleared = max(found.cleared, gone)
        elements = {key: item for key, item in found.elements.items() if item[1].ts > cleared}
        collections[column] = Collection(found.kind, cleared, elements)
    marker = state.marker
    if marker is not None and marker.ts <= gone:
        marker = Marker(gone, 0)
    return RowState(marker, gone, cells, collections, state.key, state.foreign)


def _expired_cell(cell: Cell, now_us: int) -> Cell:
    return Cell(cell.ts) if cell.expires is not None and cell.expires <= now_us and cell.value is not None else cell


def _all_cells(state: RowState) -> list[Cell]:
    found = list(state.cells.values())
    for collection in state.collections.values():
        found += [cell for _, cell in collection.elements.values()]
    return found


def _value(state: RowState, column: str) -> Any:
    cell = state.cells.get(column)
    if cell is not None:
        return cell.value
    found = state.collections.get(column)
    return None if found is None else _collected(found)


def _collected(found: Collection) -> Any:
    """As CQL shows it: sets sorted, lists in the order of their places, maps and types as objects; null when empty."""
    live = [(key, cell.value) for _, (key, cell) in sorted(found.elements.items()) if cell.value is not None]
    if not live:
        return None
    if found.kind == "set":
        return sorted((key for key, _ in live), key=encode_value)
    if found.kind == "list":
        return [value for _, value in sorted(live, key=lambda item: _time_of(item[0]))]
    return {element_text(key): value for key, value in live}


def _time_of(timeuuid: str) -> tuple[str, str]:
    """A timeuuid's text in the order of its time, then of its bytes."""
    low, middle, high, *_ = timeuuid.split("-")
    return high[1:] + middle + low, timeuuid


def _tie(cell: Cell) -> int:
    rank = _rank(cell)
    if rank == 1:
        return (1 << _KIND_SHIFT) + (cell.expires or 0) // 1_000_000
    if rank == 2:
        return 2 << _KIND_SHIFT
    head = value_bytes(cell)[:16]
    # Integers and the like begin with many equal bytes: their last ones tell them apart.
    part = head[-6:] if cell.value.__class__ is int else head[:6].ljust(6, b"\0")
    return int.from_bytes(part, "big") & ((1 << _VALUE_BITS) - 1)


def _marker_tie(marker: Marker | None) -> int:
    if marker is None or marker.expires is None:
        return 0
    return 2 << _KIND_SHIFT if marker.expires == 0 else (1 << _KIND_SHIFT) + marker.expires // 1_000_000


def _compared(clustering: Sequence[Any], bound: Bound, types: Sequence[str | None]) -> int:
    """-1, 0, 1 as the row's leading clustering values are below, at or above the bound's."""
    for value, limit, declared in zip(clustering, bound.values, types, strict=False):
        encode = typed(encode_value, declared)
        left, right = encode(value), encode(limit)
        if left != right:
            return -1 if left < right else 1
    return 0


# ---- as stored

# JSON, because it has integers of any size.
_STATE_ENCODER = msgspec.json.Encoder()
_STATE_DECODER = msgspec.json.Decoder(RowState)
_STONE_DECODER = msgspec.json.Decoder(Tombstone)


def encode_state(state: RowState) -> bytes:
    return _STATE_ENCODER.encode(state)


def decode_state(blob: bytes) -> RowState:
    return _STATE_DECODER.decode(blob) if blob else EMPTY


def encode_tombstone(tombstone: Tombstone) -> bytes:
    """Equal tombstones give equal bytes, so that a set holds each once."""
    return msgspec.json.encode(tombstone)


def decode_tombstone(blob: bytes) -> Tombstone:
    return _STONE_DECODER.decode(blob)
