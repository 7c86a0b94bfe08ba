"""Between the tasks that read tables and the one that hands batches over: in order, and bounded in bytes."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

import msgspec

from connectors.source import SourceRecord


class Item(msgspec.Struct, frozen=True):
    """Records, and what they make of the progress once they are handed over. `steady`: worth a position although
    there are no records."""

    records: list[SourceRecord]
    size: int
    advance: Callable[[], None] | None = None
    newest_us: int = 0
    steady: bool = False


class Outbox:
    """`put` waits while more than `bytes_max` wait to be taken. An error goes to whoever takes next."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._items: deque[Item] = deque()
        self._bytes = 0
        self._error: BaseException | None = None
        self._filled = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()

    async def put(self, item: Item) -> None:
        while self._bytes > self._bytes_max:
            self._room.clear()
            await self._room.wait()
        self._items.append(item)
        self._bytes += item.size
        self._filled.set()

    def fail(self, error: BaseException) -> None:
        self._error = self._error or error
        self._filled.set()

    async def take(self, bytes_max: int) -> list[Item]:
        """At least one, up to a steady one, and no more than about `bytes_max`. Raises what a task failed with, after
        what it had put."""
        while not self._items:
            if self._error is not None:
                raise self._error
            self._filled.clear()
            await self._filled.wait()
        taken: list[Item] = []
        size = 0
        while self._items and size <= bytes_max:
            item = self._items.popleft()
            size += item.size
            taken.append(item)
            if item.steady:
                break
        self._bytes -= size
        self._room.set()
        return taken
