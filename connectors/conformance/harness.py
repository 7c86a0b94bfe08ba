"""What a connector's author gives the suite: one table of a real system, written and read without the connector.

`Harness` is required. Each further protocol is one more thing that the system can do or suffer; the tests that need it
are collected only for a harness that has it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

from connectors.registry import Plugin
from connectors.source import Position, SourceRecord

Rows = dict[str, dict[str, Any]]
"""Record key as JSON text → row, as canonical values."""
Test = TypeVar("Test", bound=Callable[..., Any])

NAME = "conformance"
"""The source's name in the suite."""


class Harness(Protocol):
    """One table with a whole number `id` as key and a text `v`; further columns are the system's own matter.

    The system is up, and the table empty, when a test gets its harness.
    """

    plugin: Plugin

    def section(self) -> dict[str, Any]:
        """The section `sources.conformance` that captures the table. Short heartbeats (0.1 s) and small chunks, so
        that the suite sees many of both. Must not change within a test."""

    async def write(self, rows: Mapping[int, str]) -> None:
        """Writes rows, id → v, all at once where the system can: creates what is not there, changes what is."""

    async def rows(self) -> Rows:
        """What the table holds now."""

    def order(self, position: Position) -> Any:
        """Something that sorts: the greater of two positions is further."""


@runtime_checkable
class Snapshots(Protocol):
    """A source that reads a table's rows apart from their changes, and says so in each record."""

    def chunk_rows(self) -> int:
        """How many rows it reads at once, by `section`; the suite writes a multiple of it."""


@runtime_checkable
class Deleting(Protocol):
    async def delete(self, ids: Sequence[int]) -> None:
        """Deletes rows, those that are not there silently."""


@runtime_checkable
class Folding(Protocol):
    """For records that do not hold whole rows in our envelope for them."""

    def fold(self, records: Sequence[SourceRecord]) -> Rows:
        """The rows after all records, as a consumer makes them: never backwards, deletes included."""


@runtime_checkable
class Typed(Protocol):
    async def write_types(self) -> Rows:
        """Writes rows with every type that the source knows: least, greatest, empty, infinite, not a number, bytes,
        text of every alphabet. Returns the golden table: what the records must hold, written out by hand."""


@runtime_checkable
class Nulling(Protocol):
    async def write_nulls(self) -> list[dict[str, Any]]:
        """Writes into one row after the other a NULL, no value at all, and a change of another column that leaves a
        large value unsent. Returns what the `after` of the records must be, in order: null, the column absent,
        `__debezium_unavailable_value`; only those that the system knows."""


@runtime_checkable
class Rekeying(Protocol):
    async def change_key(self, old: int, new: int) -> None:
        """Gives a row another id."""


@runtime_checkable
class Confirming(Protocol):
    async def confirmed(self) -> Any:
        """How far the server has been told that it may forget; sorts. Asked without the connector."""


@runtime_checkable
class Foreign(Protocol):
    async def foreign_position(self, position: Position) -> Position:
        """The same position as if it came from another server, or a server set back to a backup."""


@runtime_checkable
class Losing(Protocol):
    async def lose(self) -> None:
        """Makes the server forget changes that nobody has read."""


@runtime_checkable
class Misconfigured(Protocol):
    async def bad_sections(self) -> Mapping[str, dict[str, Any]]:
        """What is wrong → a section that is valid and does not fit the system: wrong password, no grant, no table."""


@runtime_checkable
class Restarting(Protocol):
    async def restart(self) -> None:
        """Ends the server and starts it again; returns when it answers."""


@runtime_checkable
class Altering(Protocol):
    async def alter(self, step: int) -> bool:
        """Changes the table while it is captured: step 0 adds a column, 1 renames it, 2 drops it, and so on. False
        when there is no such step; then nothing has changed."""


@runtime_checkable
class Exclusive(Protocol):
    """A source of which one reader at a time is let in."""

    def refusal(self) -> str:
        """What the message to the second reader must hold."""


@runtime_checkable
class Duplicating(Protocol):
    async def write_copies(self, rows: Mapping[int, str]) -> None:
        """As `write`, and the source sees each write several times (replicas, a log written twice)."""


@runtime_checkable
class Late(Protocol):
    async def write_late(self, rows: Mapping[int, str]) -> None:
        """As `write`, with the write times of a while ago that the source still has to wait for."""


@runtime_checkable
class Switching(Protocol):
    async def switch(self) -> None:
        """Moves the log to another place: a new generation of streams, a new log file, another primary."""


def needs(*abilities: type[Any], without: tuple[type[Any], ...] = ()) -> Callable[[Test], Test]:
    """Marks a test of the suite: collected only where harness or source have all `abilities` and none of `without`."""

    def mark(test: Test) -> Test:
        test.__dict__["conformance_needs"] = abilities
        test.__dict__["conformance_without"] = without
        return test

    return mark


def misses(test: Any, harness_type: type[Any]) -> list[str]:
    """Why a test is not for this harness: the abilities that it lacks, or has too much."""
    missing = [one.__name__ for one in getattr(test, "conformance_needs", ()) if not _has(harness_type, one)]
    surplus = [one.__name__ for one in getattr(test, "conformance_without", ()) if _has(harness_type, one)]
    return [*missing, *(f"not {name}" for name in surplus)]


def _has(harness_type: type[Any], ability: type[Any]) -> bool:
    plugin: Plugin = harness_type.plugin
    return issubclass(harness_type, ability) or plugin.can(ability)
