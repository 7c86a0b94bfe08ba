"""How the oracle reads sources: protocols that a connector's reader fits without importing anything from here."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

Values = tuple[Any, ...]
Match = Mapping[str, Sequence[str]]
"""Column → texts, all of one length: row i of the match wants the i-th text in each column (schemas.keys spelling)."""


class TableReader(Protocol):
    """Reads one source as it is now. Safe for concurrent calls; raises EnvironmentProblem when the source is away or
    refuses, ConfigError or EnvironmentProblem for a table or column that does not exist."""

    async def columns(self, table: str) -> dict[str, str]:
        """Column → type, e.g. {"id": "bigint"}; those in NUMBER_TYPES and TIME_TYPES sort as what they are."""

    def rows(
        self, table: str, columns: Sequence[str], match: Match | None, order: Sequence[str], limit: int | None
    ) -> AsyncIterator[list[Values]]:
        """Canonical values of `columns`, in batches of bounded size.

        `match` None gives every row, else those that match any of its rows (it may give a few more; the caller checks).
        `order` names columns, '-' descending; null is smallest, text goes by code point, a column of TIME_TYPES by the
        moment. `limit` is per matched row.
        """

    async def clock_us(self) -> int:
        """The source's clock, microseconds since 1970 UTC: what is committed before now is older."""


@runtime_checkable
class Holding(Protocol):
    """An optional ability of a TableReader: it holds tables in memory that its source can't look rows up in."""

    def forget(self) -> None:
        """They are read again when they are asked for."""


class Measure(NamedTuple):
    """One number or value over a group: `count` (of `column`, or of rows), `sum` (exact text), `count_distinct`,
    `first` (value of `column` in the first row by `order`), `first_present` (the same, nulls in `column` left out)."""

    function: str
    column: str | None = None
    order: tuple[str, ...] = ()


@runtime_checkable
class Aggregating(Protocol):
    """An optional ability of a TableReader: the source itself groups and counts."""

    async def totals(
        self,
        table: str,
        match: Match,
        group_by: Sequence[str],
        measures: Sequence[tuple[str, str | None, tuple[str, ...]]],
    ) -> list[tuple[Values, Values, Values]]:
        """(values of the match columns, group values, measures) for every group that has rows."""


NUMBER_TYPES = frozenset({"smallint", "integer", "bigint", "real", "double precision", "numeric"})
TIME_TYPES = frozenset({"date", "timestamp without time zone", "timestamp with time zone"})
