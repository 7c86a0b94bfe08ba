"""Rows that can't be converted: a letter each, in a snapshot as in the stream, and the next rows go on."""

from __future__ import annotations

import base64

import msgspec
import pytest

from connectors.postgres.encoder import Moment, TableEncoder, unreadable_row
from connectors.postgres.pgoutput import UNCHANGED, Relation, RelationColumn
from connectors.postgres.snapshot import encode_rows
from connectors.postgres.values import text
from connectors.postgres.watermark import _converted
from connectors.set_aside import decode_set_aside

COLUMNS = (RelationColumn("id", 25, -1, True), RelationColumn("v", 25, -1, False))
ENCODER = TableEncoder("src", "db", Relation(0, 1, "public", "t", "d", COLUMNS), ["id"], [text, text])
ROWS = [[b"1", b"a"], [b"2", b"\xff"], [b"3", b"c"]]
"""As a database with encoding SQL_ASCII may hold them: the second is no UTF-8."""


def test_a_snapshot_goes_on_behind_a_row_that_no_converter_reads() -> None:
    records = encode_rows("src", ENCODER, ROWS, Moment(7, 1, 0, 1, "true"))
    assert [record.topic for record in records] == ["src.public.t", "ctxpipe.src.dead-letter", "src.public.t"]
    letter = decode_set_aside(records[1].value)
    assert letter.table == "public.t" and letter.topic == "src.public.t" and "can't be converted" in letter.reason
    assert letter.row == {"id": "Mg==", "v": base64.b64encode(b"\xff").decode()}


def test_a_table_snapshot_goes_on_too() -> None:
    readable, set_aside = _converted("src", ENCODER, ROWS)
    assert list(readable) == [b'{"id":"1"}', b'{"id":"3"}'] and len(set_aside) == 1


def test_a_letter_shows_what_the_source_sent() -> None:
    record = unreadable_row("src", ENCODER, 9, [b"x" * 20_000, UNCHANGED], ValueError("odd"))
    letter = decode_set_aside(record.value)
    assert letter.lsn == 9 and set(letter.row) == {"id"}
    assert len(base64.b64decode(letter.row["id"] or "")) == 10_000
    with pytest.raises(ValueError, match="no"):
        decode_set_aside(msgspec.json.encode({"reason": "no", "topic": "t", "digest": "a worker's"}))
