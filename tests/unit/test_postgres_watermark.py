"""The watermark window: what streams by is dropped from the chunk, and a chunk that was read too early is repeated."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from connectors.postgres.changes import SNAPSHOT_PREFIX, WATERMARK_PREFIX
from connectors.postgres.encoder import TableEncoder
from connectors.postgres.pgoutput import Relation, RelationColumn
from connectors.postgres.values import text
from connectors.postgres.watermark import TableProgress, TableSnapshots, _Chunk, _sees, _visibility
from connectors.source import SourceRecord

RELATION = Relation(0, 1, "public", "t", "d", (RelationColumn("id", 25, -1, True),))
ENCODER = TableEncoder("src", "db", RELATION, ["id"], [text])
KEYS = [b'{"id":"%d"}' % number for number in range(4)]


async def never(table: str) -> Any:
    raise AssertionError(table)


def snapshots() -> TableSnapshots:
    found = TableSnapshots("src", None, ["public.t"], never, {"public.t": TableProgress()}, 10, None)  # type: ignore[arg-type]
    rows = {key: ENCODER.fragments([b"%d" % number]) for number, key in enumerate(KEYS)}
    found._chunk = _Chunk(
        "public.t", ENCODER, TableProgress(["3"], ["9"], 4), False, rows, [], _visibility("100:105:102"), 1, 4
    )
    found._mark = "m"
    return found


def mark(found: TableSnapshots, kind: str, lsn: int, name: str = "m") -> list[SourceRecord]:
    body = {"source": "src", "kind": kind, "mark": name, "table": "public.t"}
    return list(found.message(WATERMARK_PREFIX, msgspec.json.encode(body), lsn))


async def test_keys_between_the_marks_are_dropped() -> None:
    found = snapshots()
    found.row_seen("public.t", KEYS[0])
    assert not found.watching
    mark(found, "low", 50)
    assert found.watching
    found.row_seen("public.t", KEYS[1])
    found.row_seen("public.other", KEYS[2])
    records = mark(found, "high", 90)
    assert [record.key for record in records] == [KEYS[0], KEYS[2], KEYS[3]]
    sequences = {msgspec.json.decode(record.value or b"")["source"]["sequence"] for record in records}
    assert sequences == {'["90","0"]'}
    assert found.pending == {"public.t": TableProgress(["3"], ["9"], 4)} and not found.watching


async def test_a_truncate_between_the_marks_empties_the_chunk() -> None:
    found = snapshots()
    mark(found, "low", 50)
    found.row_seen("public.t", None)
    assert mark(found, "high", 90) == [] and found.pending["public.t"].after == ["3"]


@pytest.mark.parametrize(
    ("xid", "lsn", "repeated"), [(102, 40, True), (107, 40, True), (101, 40, False), (102, 60, False)]
)
async def test_a_chunk_that_missed_a_streamed_transaction_is_read_again(xid: int, lsn: int, repeated: bool) -> None:
    """A commit is in the log before it is visible: read in between, its old rows would come after its changes."""
    found = snapshots()
    found.committed(xid, lsn)
    mark(found, "low", 50)
    records = mark(found, "high", 90)
    assert bool(records) is not repeated
    assert (found.pending["public.t"].after is None) is repeated and found.chunks_repeated == repeated


async def test_marks_of_others_and_of_the_dead_are_ignored() -> None:
    found = snapshots()
    assert mark(found, "high", 40, "of a predecessor") == []
    mark(found, "low", 50, "of a predecessor")
    assert mark(found, "high", 60, "of a predecessor") == [] and not found.watching
    body = msgspec.json.encode({"source": "other", "table": "public.x"})
    assert list(found.message(SNAPSHOT_PREFIX, body, 1)) == [] and list(found.pending) == ["public.t"]
    await asyncio.sleep(0)


async def test_marks_of_a_predecessor_that_still_runs_leave_our_window_open() -> None:
    """It was suspended between its marks: what streams by after them must not be lost on our chunk, nor the chunk."""
    found = snapshots()
    mark(found, "low", 50)
    mark(found, "low", 60, "of a zombie")
    mark(found, "high", 70, "of a zombie")
    assert found.watching
    found.row_seen("public.t", KEYS[1])
    assert [record.key for record in mark(found, "high", 90)] == [KEYS[0], KEYS[2], KEYS[3]]
    assert found._passed.is_set()


def test_visibility_across_the_wrap_of_transaction_ids() -> None:
    visible = _visibility(f"{(1 << 32) - 2}:{(1 << 32) + 5}:{(1 << 32) + 1}")
    assert _sees(visible, (1 << 32) - 3) and _sees(visible, 2) and not _sees(visible, 1) and not _sees(visible, 6)
