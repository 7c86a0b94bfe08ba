"""Where rows come from that are older than the log: the seam between this source and a snapshot of the tables."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from connectors.cql.session import CqlSession
from connectors.source import SourceRecord


class Step(msgspec.Struct, frozen=True):
    """Rows, as records, and how far the snapshot is with them: JSON that it is given back when it goes on."""

    records: list[SourceRecord]
    progress: dict[str, Any]


class InitialRows(Protocol):
    """Reads tables while they are written. The rows carry their write times, so that the log's changes, which are
    published after them and partly tell the same, and they may come in any order."""

    def steps(
        self, session: CqlSession, keyspace: str, tables: Sequence[str], progress: Mapping[str, Any]
    ) -> AsyncIterator[Step]:
        """Goes on behind `progress` ({}: from the beginning); ends when all rows have been read."""
