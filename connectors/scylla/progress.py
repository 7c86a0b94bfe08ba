"""How far a table's log has been read, as it is kept in the position. Pure.

All groups have been read up to `until_us`. In the window that is open, `ahead` holds the groups that have come to its
end, and `partial` the last change of a stream up to which a group has come: always the end of a batch, never within.
"""

from __future__ import annotations

from typing import Any

import msgspec

from connectors.cql.times import timeuuid_order
from connectors.scylla.windows import Window


class TableProgress(msgspec.Struct):
    """`id` is the log table's: one that was made anew under the same name is another."""

    id: str
    generation_ms: int
    until_us: int
    ahead: dict[str, int] = {}
    partial: dict[str, str] = {}

    def start_of(self, group: str) -> int:
        """Up to where a group has been read completely."""
        return max(self.until_us, self.ahead.get(group, 0))

    def delivered(self, stream: bytes, time: bytes) -> bool:
        """Whether a change of a stream was read before: everything up to the last end of a batch was."""
        last = self.partial.get(stream.hex())
        return last is not None and timeuuid_order(time) <= timeuuid_order(bytes.fromhex(last))

    def batch_ended(self, stream: bytes, time: bytes) -> None:
        self.partial[stream.hex()] = time.hex()

    def group_ended(self, group: str, streams: tuple[bytes, ...], end_us: int) -> None:
        self.ahead[group] = end_us
        for stream in streams:
            self.partial.pop(stream.hex(), None)

    def window_ended(self, window: Window, next_generation_ms: int | None) -> None:
        """All groups are through. Streams of the old generation are never asked again."""
        self.until_us = window.end_us
        self.ahead = {group: until for group, until in self.ahead.items() if until > window.end_us}
        self.partial = {} if not self.ahead else self.partial
        if next_generation_ms is not None:
            self.generation_ms, self.ahead, self.partial = next_generation_ms, {}, {}

    def stored(self) -> dict[str, Any]:
        """JSON, of this moment."""
        found: dict[str, Any] = msgspec.to_builtins(self)
        return found


def restored(stored: dict[str, Any]) -> TableProgress:
    return msgspec.convert(stored, TableProgress)
