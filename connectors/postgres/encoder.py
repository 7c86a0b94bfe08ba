"""Builds the bytes of our envelope for the changes of one table: templates filled with JSON fragments, nothing parsed.

The envelope is Debezium's, schemas off; `schemas/event.py` and `schemas/topics.py` say what travels in it.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence

import msgspec

from connectors.postgres.compiled import compile_row_parser
from connectors.postgres.pgoutput import UNCHANGED, Relation, Tuple
from connectors.postgres.values import UNAVAILABLE, Converter
from connectors.set_aside import SetAside, letter_record
from connectors.source import SourceRecord
from schemas.topics import table_topic

CONNECTOR_VERSION = "ctxpipe-0.1.0"
TRUNCATE_KEY = b'{"__ctxpipe":"truncate"}'
SHOWN_BYTES_MAX = 10_000
HEARTBEAT_KEY = b'{"__ctxpipe":"heartbeat"}'

Fragments = Sequence[bytes]
"""The JSON bytes of a row's values, in the relation's column order."""

_encode = msgspec.json.Encoder().encode


class Moment(msgspec.Struct, frozen=True, gc=False):
    """What the changes of one transaction share. `snapshot` is Debezium's: false, true or incremental."""

    commit_lsn: int
    commit_time_us: int
    xid: int
    now_ms: int
    snapshot: str = "false"


class TableEncoder:
    """Encodes the rows of one relation version; `key` names the columns of the record key, in order."""

    def __init__(
        self, source: str, database: str, relation: Relation, key: Sequence[str], converters: Sequence[Converter]
    ) -> None:
        self.relation = relation
        self.table = f"{relation.schema}.{relation.name}"
        self.topic = table_topic(source, self.table)
        self.columns = [column.name for column in relation.columns]
        self.key_columns = list(key)
        self.key_indexes = [self.columns.index(name) for name in key]
        self.converters = list(converters)
        self.parse_row = compile_row_parser(self.converters)
        self._plain_key = len(self.key_indexes) == 1
        self._identity = [index for index, column in enumerate(relation.columns) if column.in_identity]
        row = _object_template(self.columns)
        self._key_template = _object_template(self.key_columns)
        self._row_template = row
        self._identity_template = _object_template([self.columns[index] for index in self._identity])
        head = _source_template(source, database, relation.schema, relation.name)
        self._templates = {
            "c": b'{"before":null,"after":' + row + head + b'"c"' + _TAIL,
            "r": b'{"before":null,"after":' + row + head + b'"r"' + _TAIL,
            "u": b'{"before":null,"after":' + row + head + b'"u"' + _TAIL,
            "uO": b'{"before":%b,"after":' + row + head + b'"u"' + _TAIL,
            "d": b'{"before":%b,"after":null' + head + b'"d"' + _TAIL,
            "t": b'{"before":null,"after":null' + head + b'"t"' + _TAIL,
        }
        self._moment: Moment | None = None
        self._ready: dict[str, bytes] = {}

    def fragments(self, values: Tuple) -> Fragments:
        """Converts a row; an unsent column becomes the placeholder."""
        return [
            b"null"
            if value is None
            else UNAVAILABLE
            if value is UNCHANGED
            else value
            if convert is None
            else convert(value)
            for value, convert in zip(values, self.converters, strict=True)
        ]

    def key(self, fragments: Fragments) -> bytes:
        """The record key: a JSON object of the key columns."""
        if self._plain_key:
            return self._key_template % fragments[self.key_indexes[0]]
        return self._key_template % tuple([fragments[index] for index in self.key_indexes])

    def row(self, operation: str, fragments: Fragments, lsn: int, moment: Moment) -> bytes:
        """The value of an insert (c), of an update without old row (u) or of a snapshot row (r)."""
        return self._template(operation, moment) % (*fragments, lsn, lsn)

    def update(self, old: Fragments, new: Fragments, lsn: int, moment: Moment) -> bytes:
        """The value of an update whose whole old row is known."""
        return self._template("uO", moment) % (self._row_template % tuple(old), *new, lsn, lsn)

    def delete(self, old: Fragments, whole: bool, lsn: int, moment: Moment) -> bytes:
        """The value of a delete; `before` holds the whole old row or only its identity columns."""
        if whole:
            before = self._row_template % tuple(old)
        else:
            before = self._identity_template % tuple([old[index] for index in self._identity])
        return self._template("d", moment) % (before, lsn, lsn)

    def delete_by(self, key: bytes, lsn: int, moment: Moment) -> bytes:
        """The value of a delete that tells only the record key."""
        return self._template("d", moment) % (key, lsn, lsn)

    def truncate(self, lsn: int, moment: Moment) -> bytes:
        return self._template("t", moment) % (lsn, lsn)

    def _template(self, operation: str, moment: Moment) -> bytes:
        if moment is not self._moment:
            self._moment = moment
            self._ready = {}
        template = self._ready.get(operation)
        if template is None:
            template = self._templates[operation].replace(b"\x01", _times(moment), 1)
            template = template.replace(b"\x02", b"%d" % moment.xid if moment.xid else b"null", 1)
            template = template.replace(b"\x03", b"%d" % moment.commit_lsn, 1).replace(b"\x04", b"%d" % moment.now_ms)
            self._ready[operation] = template
        return template


def message_value(
    source: str, database: str, prefix: str, content: bytes, lsn: int, time_us: int, moment: Moment, system: str = ""
) -> bytes:
    """The value of a logical message (op m); `time_us` is when it was written, `system` the server's identifier."""
    body = {
        "before": None,
        "after": None,
        "source": {
            "version": CONNECTOR_VERSION,
            "connector": "postgresql",
            "name": source,
            "ts_ms": time_us // 1000,
            "ts_us": time_us,
            "snapshot": "false",
            "db": database,
            "schema": "",
            "table": "",
            "txId": moment.xid or None,
            "lsn": lsn,
            "sequence": f'["{moment.commit_lsn}","{lsn}"]',
            **({"system": system} if system else {}),
        },
        "op": "m",
        "ts_ms": moment.now_ms,
        "message": {"prefix": prefix, "content": base64.b64encode(content).decode()},
    }
    return _encode(body)


def unreadable_row(source: str, encoder: TableEncoder, lsn: int, values: Tuple, error: Exception) -> SourceRecord:
    """The letter of a row that no converter can read, in the stream or in a snapshot: the next rows go on."""
    shown = {
        name: None if value is None else base64.b64encode(value[:SHOWN_BYTES_MAX]).decode()
        for name, value in zip(encoder.columns, values, strict=False)
        if value is not UNCHANGED
    }
    reason = f"A row that can't be converted: {error}"
    letter = SetAside(reason=reason, topic=encoder.topic, table=encoder.table, lsn=lsn, row=shown)
    return letter_record(source, letter, encoder.topic.encode())


def _object_template(columns: Sequence[str]) -> bytes:
    return b"{%b}" % b",".join(_encode(name).replace(b"%", b"%%") + b":%b" for name in columns)


def _times(moment: Moment) -> bytes:
    times = b'"ts_ms":%d,"ts_us":%d' % (moment.commit_time_us // 1000, moment.commit_time_us)
    return times + b',"snapshot":"%b"' % moment.snapshot.encode()


_TAIL = b',"ts_ms":\x04}'


def _source_template(source: str, database: str, schema: str, table: str) -> bytes:
    """Up to the operation; \\x01 to \\x04 are filled in per transaction, the two %d per row with its LSN."""

    def name(value: str) -> bytes:
        return _encode(value).replace(b"%", b"%%")

    return (
        b',"source":{"version":"%b","connector":"postgresql","name":%b,\x01,"db":%b,"schema":%b,"table":%b,'
        % (CONNECTOR_VERSION.encode(), name(source), name(database), name(schema), name(table))
        + b'"txId":\x02,"lsn":%d,"sequence":"[\\"\x03\\",\\"%d\\"]"},"op":'
    )
