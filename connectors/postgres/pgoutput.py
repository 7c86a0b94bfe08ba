"""Turns the bytes of Postgres' logical replication (plugin pgoutput, protocol 1 and 2) into messages; no I/O, no state.

Every message is decoded to its last byte: a message that is too short or too long, an unknown tag, an unknown kind of
value raise Fatal, because guessing would corrupt what comes after.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import msgspec

from pipeline.core.errors import Fatal

UNCHANGED = b"\x00unchanged"
"""Stands for an unchanged TOAST value that the server did not send. Text never holds a NUL: no value equals it."""

Tuple = list[bytes | None]
"""A row as text output per column: None is NULL, UNCHANGED was not sent. Compare UNCHANGED with `is`."""

POSTGRES_EPOCH_US = 946_684_800_000_000
"""2000-01-01 in microseconds since 1970."""


class Begin(msgspec.Struct, frozen=True, gc=False):
    commit_lsn: int
    commit_time_us: int
    xid: int


class Commit(msgspec.Struct, frozen=True, gc=False):
    commit_lsn: int
    end_lsn: int
    commit_time_us: int


class Origin(msgspec.Struct, frozen=True, gc=False):
    lsn: int
    name: str


class RelationColumn(msgspec.Struct, frozen=True, gc=False):
    """`in_identity`: part of the replica identity. `type_modifier` is Postgres' atttypmod, -1 for none."""

    name: str
    type_oid: int
    type_modifier: int
    in_identity: bool


class Relation(msgspec.Struct, frozen=True, gc=False):
    """A table's columns as of the changes that follow. `replica_identity`: d default, n nothing, f full, i index."""

    xid: int
    oid: int
    schema: str
    name: str
    replica_identity: str
    columns: tuple[RelationColumn, ...]


class TypeName(msgspec.Struct, frozen=True, gc=False):
    xid: int
    oid: int
    schema: str
    name: str


class Insert(msgspec.Struct, frozen=True, gc=False):
    xid: int
    relation: int
    new: Tuple


class Update(msgspec.Struct, frozen=True, gc=False):
    """`old_kind`: K only the identity columns are known (the others are None), O the whole old row, "" no old row."""

    xid: int
    relation: int
    old_kind: str
    old: Tuple | None
    new: Tuple


class Delete(msgspec.Struct, frozen=True, gc=False):
    xid: int
    relation: int
    old_kind: str
    old: Tuple


class Truncate(msgspec.Struct, frozen=True, gc=False):
    xid: int
    options: int
    relations: tuple[int, ...]


class LogicalMessage(msgspec.Struct, frozen=True, gc=False):
    xid: int
    transactional: bool
    lsn: int
    prefix: str
    content: bytes


class StreamStart(msgspec.Struct, frozen=True, gc=False):
    xid: int
    first: bool


class StreamStop(msgspec.Struct, frozen=True, gc=False):
    pass


class StreamCommit(msgspec.Struct, frozen=True, gc=False):
    xid: int
    commit_lsn: int
    end_lsn: int
    commit_time_us: int


class StreamAbort(msgspec.Struct, frozen=True, gc=False):
    """Equal xids: the whole transaction was rolled back; otherwise only the sub-transaction `sub_xid`."""

    xid: int
    sub_xid: int


Message = (
    Begin
    | Commit
    | Origin
    | Relation
    | TypeName
    | Insert
    | Update
    | Delete
    | Truncate
    | LogicalMessage
    | StreamStart
    | StreamStop
    | StreamCommit
    | StreamAbort
)


def decode(data: bytes, in_stream: bool = False) -> Message:
    """One pgoutput message. `in_stream`: it came between StreamStart and StreamStop, where each carries its xid.

    Raises Fatal on anything that is not exactly a message of protocol 1 or 2.
    """
    if not data:
        raise Fatal("The replication stream sent an empty message; the connector can't tell what was lost.")
    tag = data[0]
    try:
        change = _CHANGES.get(tag)
        if change is not None:
            if in_stream:
                return change(data, 5, _U32(data, 1)[0])
            return change(data, 1, 0)
        control = _CONTROLS.get(tag)
        if control is not None:
            return control(data)
    except (struct.error, IndexError, ValueError) as error:
        start = data[:60].hex()
        raise Fatal(f"The replication stream sent a broken '{chr(tag)}' message ({error}): {start}") from error
    raise Fatal(_unknown(tag))


def _unknown(tag: int) -> str:
    if chr(tag) in "bPKrp":
        return (
            "The slot delivers prepared transactions (it was made with two_phase = true), which ctxpipe does not read. "
            "Drop the slot and let ctxpipe create its own, which delivers them when they are committed."
        )
    return f"The replication stream sent an unknown message '{chr(tag)}' (0x{tag:02x}): a newer protocol than 2?"


_U16 = struct.Struct(">H").unpack_from
_U32 = struct.Struct(">I").unpack_from
_TEXT, _NULL, _UNSENT = b"t"[0], b"n"[0], b"u"[0]
_NEW, _KEY, _OLD = b"N"[0], b"K"[0], b"O"[0]


def _tuple(data: bytes, at: int) -> tuple[Tuple, int]:
    """The hot loop: a fifth of a connector's time is spent here."""
    count = _U16(data, at)[0]
    at += 2
    values: Tuple = []
    append = values.append
    for _ in range(count):
        kind = data[at]
        if kind == _TEXT:
            start = at + 5
            at = start + _U32(data, at + 1)[0]
            append(data[start:at])
        elif kind == _NULL:
            append(None)
            at += 1
        elif kind == _UNSENT:
            append(UNCHANGED)
            at += 1
        else:
            raise Fatal(f"The replication stream sent a value of unknown kind '{chr(kind)}'; only text is asked for.")
    return values, at


def _finish(data: bytes, at: int) -> None:
    if at != len(data):
        raise ValueError(f"{len(data)} bytes where {at} were expected")


def _insert(data: bytes, at: int, xid: int) -> Insert:
    relation = _U32(data, at)[0]
    if data[at + 4] != _NEW:
        raise ValueError("no new row")
    new, end = _tuple(data, at + 5)
    if end != len(data):
        _finish(data, end)
    return Insert(xid, relation, new)


def _update(data: bytes, at: int, xid: int) -> Update:
    relation = _U32(data, at)[0]
    kind, old = data[at + 4], None
    end = at + 5
    if kind in (_KEY, _OLD):
        old, end = _tuple(data, end)
        if data[end] != _NEW:
            raise ValueError("no new row")
        end += 1
    elif kind != _NEW:
        raise ValueError("neither an old nor a new row")
    new, end = _tuple(data, end)
    _finish(data, end)
    return Update(xid, relation, "" if old is None else chr(kind), old, new)


def _delete(data: bytes, at: int, xid: int) -> Delete:
    relation = _U32(data, at)[0]
    kind = data[at + 4]
    if kind not in (_KEY, _OLD):
        raise ValueError("no old row")
    old, end = _tuple(data, at + 5)
    _finish(data, end)
    return Delete(xid, relation, chr(kind), old)


def _truncate(data: bytes, at: int, xid: int) -> Truncate:
    count, options = struct.unpack_from(">IB", data, at)
    _finish(data, at + 5 + 4 * count)
    return Truncate(xid, options, struct.unpack_from(f">{count}I", data, at + 5))


def _message(data: bytes, at: int, xid: int) -> LogicalMessage:
    flags, lsn = struct.unpack_from(">BQ", data, at)
    prefix, at = _text(data, at + 9)
    start = at + 4
    _finish(data, start + _U32(data, at)[0])
    return LogicalMessage(xid, bool(flags & 1), lsn, prefix, data[start:])


def _text(data: bytes, at: int) -> tuple[str, int]:
    end = data.index(b"\0", at)
    return data[at:end].decode(), end + 1


def _relation(data: bytes, at: int, xid: int) -> Relation:
    oid = _U32(data, at)[0]
    schema, at = _text(data, at + 4)
    name, at = _text(data, at)
    identity, count = struct.unpack_from(">cH", data, at)
    at += 3
    columns = []
    for _ in range(count):
        flags = data[at]
        column, at = _text(data, at + 1)
        type_oid, modifier = struct.unpack_from(">Ii", data, at)
        at += 8
        columns.append(RelationColumn(column, type_oid, modifier, bool(flags & 1)))
    _finish(data, at)
    return Relation(xid, oid, schema or "pg_catalog", name, identity.decode(), tuple(columns))


def _type(data: bytes, at: int, xid: int) -> TypeName:
    oid = _U32(data, at)[0]
    schema, at = _text(data, at + 4)
    name, at = _text(data, at)
    _finish(data, at)
    return TypeName(xid, oid, schema or "pg_catalog", name)


def _exactly(layout: str, data: bytes) -> tuple[Any, ...]:
    parser = struct.Struct(">c" + layout)
    _finish(data, parser.size)
    return parser.unpack(data)[1:]


def _begin(data: bytes) -> Begin:
    lsn, time, xid = _exactly("QqI", data)
    return Begin(lsn, time + POSTGRES_EPOCH_US, xid)


def _commit(data: bytes) -> Commit:
    _flags, lsn, end, time = _exactly("BQQq", data)
    return Commit(lsn, end, time + POSTGRES_EPOCH_US)


def _origin(data: bytes) -> Origin:
    (lsn,) = struct.unpack_from(">Q", data, 1)
    name, end = _text(data, 9)
    _finish(data, end)
    return Origin(lsn, name)


def _stream_start(data: bytes) -> StreamStart:
    xid, first = _exactly("IB", data)
    return StreamStart(xid, bool(first))


def _stream_stop(data: bytes) -> StreamStop:
    _finish(data, 1)
    return StreamStop()


def _stream_commit(data: bytes) -> StreamCommit:
    xid, _flags, lsn, end, time = _exactly("IBQQq", data)
    return StreamCommit(xid, lsn, end, time + POSTGRES_EPOCH_US)


def _stream_abort(data: bytes) -> StreamAbort:
    return StreamAbort(*_exactly("II", data))


_CHANGES: dict[int, Callable[[bytes, int, int], Message]] = {
    b"I"[0]: _insert,
    b"U"[0]: _update,
    b"D"[0]: _delete,
    b"T"[0]: _truncate,
    b"M"[0]: _message,
    b"R"[0]: _relation,
    b"Y"[0]: _type,
}

_CONTROLS: dict[int, Callable[[bytes], Message]] = {
    b"B"[0]: _begin,
    b"C"[0]: _commit,
    b"O"[0]: _origin,
    b"S"[0]: _stream_start,
    b"E"[0]: _stream_stop,
    b"c"[0]: _stream_commit,
    b"A"[0]: _stream_abort,
}
