"""Streamed transactions: interleaved, rolled back in part, spilled to disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from connectors.postgres import pgoutput
from connectors.postgres.transactions import StreamedTransactions
from pipeline.core.errors import Fatal

GOLDEN = json.loads((Path(__file__).parent.parent / "fixtures" / "pgoutput-pg15.json").read_text())


def replay(memory_bytes_max: int, directory: Path) -> tuple[dict[int, list[pgoutput.Message]], StreamedTransactions]:
    held = StreamedTransactions(memory_bytes_max, str(directory))
    committed: dict[int, list[pgoutput.Message]] = {}
    open_xid = None
    for item in GOLDEN["v2_streaming"]:
        if item["hex"].startswith("<"):
            continue
        data = bytes.fromhex(item["hex"])
        if open_xid is not None and data[:1] != b"E":
            held.add(open_xid, item["wal_start"], data)
            continue
        message = pgoutput.decode(data)
        if isinstance(message, pgoutput.StreamStart):
            held.begin(message.xid, message.first)
            open_xid = message.xid
        elif isinstance(message, pgoutput.StreamStop):
            open_xid = None
        elif isinstance(message, pgoutput.StreamAbort):
            held.abort(message.xid, message.sub_xid)
        elif isinstance(message, pgoutput.StreamCommit):
            committed[message.xid] = [pgoutput.decode(data, True) for _, data in held.commit(message.xid)]
    return committed, held


@pytest.mark.parametrize("memory_bytes_max", [1 << 30, 500, 1])
def test_golden_stream_is_the_same_from_memory_and_from_disk(memory_bytes_max: int, tmp_path: Path) -> None:
    committed, held = replay(memory_bytes_max, tmp_path)
    first, second = committed[0x330], committed[0x331]
    assert [type(m).__name__ for m in first].count("Insert") == 7
    ids = [m.new[0] for m in second if isinstance(m, pgoutput.Insert)]
    assert ids and all(m.xid == 0x331 for m in second if isinstance(m, pgoutput.Insert)), (
        "rolled back rows are left out"
    )
    assert any(isinstance(m, pgoutput.Relation) for m in second)
    assert held.memory_bytes == 0 and held.open_xids == []


def test_interleaved_transactions_and_limits(tmp_path: Path) -> None:
    held = StreamedTransactions(100, str(tmp_path))
    for xid in (7, 8):
        held.begin(xid, True)
        held.begin(xid, False)
    payloads = {xid: [b"I" + xid.to_bytes(4, "big") + bytes([n]) * 20 for n in range(9)] for xid in (7, 8)}
    for number in range(9):
        for xid in (7, 8):
            held.add(xid, number, payloads[xid][number])
            assert held.memory_bytes <= 100
    assert [payload for _, payload in held.commit(8)] == payloads[8]
    assert list(held.commit(7)) == list(enumerate(payloads[7]))


def test_what_never_began_is_fatal(tmp_path: Path) -> None:
    held = StreamedTransactions(100, str(tmp_path))
    with pytest.raises(Fatal, match="beginning never came"):
        held.begin(7, False)
    with pytest.raises(Fatal, match="never came"):
        list(held.commit(7))
    held.abort(9, 9)
    held.begin(7, True)
    held.close()
    assert held.open_xids == []
