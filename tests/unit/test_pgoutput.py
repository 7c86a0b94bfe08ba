"""The pgoutput decoder against bytes that a real Postgres 15 sent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from connectors.postgres import pgoutput
from pipeline.core.errors import Fatal

GOLDEN = json.loads((Path(__file__).parent.parent / "fixtures" / "pgoutput-pg15.json").read_text())


def payloads(part: str) -> list[bytes]:
    return [bytes.fromhex(item["hex"]) for item in GOLDEN[part] if not item["hex"].startswith("<")]


def decode_all(part: str) -> list[pgoutput.Message]:
    messages: list[pgoutput.Message] = []
    in_stream = False
    for data in payloads(part):
        message = pgoutput.decode(data, in_stream)
        in_stream = isinstance(message, pgoutput.StreamStart) or (
            in_stream and not isinstance(message, pgoutput.StreamStop)
        )
        messages.append(message)
    return messages


def test_protocol_1_golden() -> None:
    messages = decode_all("v1")
    kinds = "".join(type(message).__name__[0] for message in messages)
    assert kinds == "BRICBUCBUCBRUCBLCLBRICBDCBRTC"
    begin, relation, insert = messages[0], messages[1], messages[2]
    assert isinstance(begin, pgoutput.Begin) and isinstance(relation, pgoutput.Relation)
    assert (begin.commit_lsn, begin.xid) == (51114040, 805)
    assert [column.name for column in relation.columns] == ["id", "a", "b", "c", "big"]
    assert (relation.schema, relation.name, relation.replica_identity) == ("public", "t", "d")
    assert [column.name for column in relation.columns if column.in_identity] == ["id"]
    assert isinstance(insert, pgoutput.Insert)
    assert insert.new[:3] == [b"1", b"a", b"1.50"] and insert.new[3].startswith(b"2026-11-23 18:51:08")  # type: ignore[union-attr]


def test_update_old_rows_golden() -> None:
    plain, key_change, full = [m for m in decode_all("v1") if isinstance(m, pgoutput.Update)]
    assert (plain.old_kind, plain.old, plain.new[4]) == ("", None, pgoutput.UNCHANGED)
    assert (key_change.old_kind, key_change.old) == ("K", [b"1", None, None, None, None])
    assert full.old_kind == "O" and full.old is not None
    assert full.new[4] is pgoutput.UNCHANGED
    assert full.old[4] is not None and len(full.old[4]) == 12800


def test_messages_and_truncate_golden() -> None:
    messages = decode_all("v1")
    transactional, alone = [m for m in messages if isinstance(m, pgoutput.LogicalMessage)]
    assert (transactional.transactional, transactional.prefix, transactional.content) == (True, "pfx", b"hello")
    assert (alone.transactional, alone.content) == (False, b"nontx")
    truncate = next(m for m in messages if isinstance(m, pgoutput.Truncate))
    assert truncate.relations == (0x40C4,)
    delete = next(m for m in messages if isinstance(m, pgoutput.Delete))
    assert delete.old == [b"2", None, None, None, None, None]


def test_protocol_2_streaming_golden() -> None:
    messages = decode_all("v2_streaming")
    commits = [m for m in messages if isinstance(m, pgoutput.StreamCommit)]
    assert [commit.xid for commit in commits] == [0x330, 0x331]
    assert [m for m in messages if isinstance(m, pgoutput.StreamAbort)] == [pgoutput.StreamAbort(0x331, 0x332)]
    assert {m.xid for m in messages if isinstance(m, pgoutput.Insert)} == {0x330, 0x331, 0x332}


def test_two_phase_is_refused_in_words() -> None:
    with pytest.raises(Fatal, match="two_phase"):
        decode_all("v3_two_phase")


@pytest.mark.parametrize("part", ["v1", "v2_streaming"])
def test_cut_or_padded_messages_are_never_guessed(part: str) -> None:
    in_stream = False
    for data in payloads(part):
        for broken in (data[:-1], data + b"\0"):
            with pytest.raises(Fatal):
                pgoutput.decode(broken, in_stream)
        in_stream = data[:1] == b"S" or (in_stream and data[:1] != b"E")


def test_unknown_tag_and_unknown_value_kind() -> None:
    with pytest.raises(Fatal, match="unknown message 'Z'"):
        pgoutput.decode(b"Zabc")
    with pytest.raises(Fatal, match="unknown kind 'b'"):
        pgoutput.decode(b"I\0\0\0\1N\0\1b\0\0\0\1x")
    with pytest.raises(Fatal, match="empty"):
        pgoutput.decode(b"")
