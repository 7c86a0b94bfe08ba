"""Holds streamed large transactions until they commit: in memory up to a limit, beyond it in a file for each."""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Iterator
from typing import IO

from pipeline.core.errors import Fatal

Raw = tuple[int, bytes]
"""LSN and the bytes of one pgoutput message."""

_FRAME = struct.Struct(">QI")
_SCHEMA_TAGS = (b"R"[0], b"Y"[0])
_XID = struct.Struct(">I")


class StreamedTransactions:
    """Raw messages by transaction id, in order of arrival.

    Interleaved transactions stay apart. A rolled-back sub-transaction's changes are left out of `commit`, but not its
    relation messages: the server sends a relation once per streamed transaction, whichever sub-transaction it came in.
    """

    def __init__(self, memory_bytes_max: int, directory: str | None = None) -> None:
        self._memory_bytes_max = memory_bytes_max
        self._directory = directory
        self._transactions: dict[int, _Buffer] = {}
        self.memory_bytes = 0

    @property
    def open_xids(self) -> list[int]:
        return list(self._transactions)

    def begin(self, xid: int, first: bool) -> None:
        """A stream segment of `xid` starts. Raises Fatal for a later segment whose first one never came."""
        if first:
            self.abort(xid, xid)
            self._transactions[xid] = _Buffer()
        elif xid not in self._transactions:
            raise Fatal(f"The server sent a later part of transaction {xid} whose beginning never came.")

    def add(self, xid: int, lsn: int, payload: bytes) -> None:
        """One message of the open segment; spills the largest transaction when memory is over the limit."""
        buffer = self._transactions[xid]
        buffer.messages.append((lsn, payload))
        size = len(payload) + _FRAME.size
        buffer.memory_bytes += size
        self.memory_bytes += size
        if self.memory_bytes > self._memory_bytes_max:
            largest = max(self._transactions.values(), key=lambda held: held.memory_bytes)
            self.memory_bytes -= largest.memory_bytes
            largest.spill(self._directory)

    def abort(self, xid: int, sub_xid: int) -> None:
        """Rolls back a transaction, or only its part `sub_xid`."""
        if xid != sub_xid:
            if xid in self._transactions:
                self._transactions[xid].aborted.add(sub_xid)
            return
        buffer = self._transactions.pop(xid, None)
        if buffer is not None:
            self.memory_bytes -= buffer.memory_bytes
            buffer.close()

    def commit(self, xid: int) -> Iterator[Raw]:
        """The messages of a committed transaction, without what was rolled back; afterwards it is forgotten."""
        buffer = self._transactions.get(xid)
        if buffer is None:
            raise Fatal(f"The server committed transaction {xid} whose changes never came.")
        for lsn, payload in buffer.replay():
            if payload[0] in _SCHEMA_TAGS or _XID.unpack_from(payload, 1)[0] not in buffer.aborted:
                yield lsn, payload
        self.abort(xid, xid)

    def close(self) -> None:
        """Forgets everything and removes the files."""
        for xid in self.open_xids:
            self.abort(xid, xid)


class _Buffer:
    """One transaction: what was spilled comes before what is in memory."""

    def __init__(self) -> None:
        self.messages: list[Raw] = []
        self.memory_bytes = 0
        self.aborted: set[int] = set()
        self._file: IO[bytes] | None = None

    def spill(self, directory: str | None) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="ctxpipe-transaction-", dir=directory)  # noqa: SIM115 (lives on)
        for lsn, payload in self.messages:
            self._file.write(_FRAME.pack(lsn, len(payload)))
            self._file.write(payload)
        self.messages = []
        self.memory_bytes = 0

    def replay(self) -> Iterator[Raw]:
        if self._file is not None:
            self._file.seek(0)
            while header := self._file.read(_FRAME.size):
                lsn, size = _FRAME.unpack(header)
                yield lsn, self._file.read(size)
        yield from self.messages

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
