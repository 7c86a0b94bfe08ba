"""`ChangeEvent`: one change of one source row, as every stage sees it, whatever connector wrote it."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from schemas.mutation import Mutation

Row = dict[str, Any]
"""Column name → canonical JSON value: int, float, bool, str, None, list, dict. Decimals are strings, times ISO 8601."""

VERSION_LENGTH = 32


class Operation(enum.StrEnum):
    """What happened; the values are Debezium's codes for Postgres."""

    SNAPSHOT = "r"
    CREATE = "c"
    UPDATE = "u"
    DELETE = "d"
    TRUNCATE = "t"
    MESSAGE = "m"


def version_of(major: int, minor: int) -> str:
    """The order of changes within a row as 32 lowercase hex digits, so that every store compares it as text.

    For Postgres `major` is the commit LSN and `minor` the LSN of the change in its transaction; a snapshot row has
    the snapshot's LSN and 0.
    """
    return f"{major:016x}{minor:016x}"


class ChangeEvent(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """One change. `row` is the state after it (None for a delete), `before` what is known of the state before.

    Columns named in `unavailable` were not sent by the source (unchanged TOAST): they are absent from `row`, and the
    row store keeps their old value. `old_key` is set on the create half of a primary-key change, `new_key` on its
    delete half. `message` is (prefix, content) of a logical message; heartbeats are messages.
    """

    source: str
    table: str
    operation: Operation
    key: Row | None
    row: Row | None
    version: str
    commit_time_us: int
    before: Row | None = None
    unavailable: frozenset[str] = frozenset()
    old_key: Row | None = None
    new_key: Row | None = None
    position: str = ""
    message: tuple[str, bytes] | None = None
    cluster: str = ""
    """Which server of the source this comes from, where the record says so: heartbeats do."""
    mutation: Mutation | None = None
    """Of wide-column tables, instead of `row`: what was written, not what the row is. In the key of a partition's or
    a range's deletion the clustering columns are None."""
