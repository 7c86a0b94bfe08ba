"""The store protocols: what the stages need from Redis, and what the in-memory reference does in plain Python.

Every store belongs to one context version. All methods are coroutines, safe to call concurrently, and may be repeated
after a failure: each write is refused or harmless when it comes again or late. They raise `Retryable` when the store is
away and `ShardChanged` when a shard lost its memory of recent writes (another process answers at its place).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import msgspec

from pipeline.core.errors import Retryable
from schemas.bundle import Stored, UnitKey


class ShardChanged(Retryable):
    """A shard answers with another run id: writes that it acknowledged may be gone. Go back to the marks."""


class RowWrite(msgspec.Struct, frozen=True, gc=False):
    """One version of one row. `values` is the row in the plan's column order, None for a delete."""

    table: str
    key: str
    version: str
    values: list[Any] | None
    links: tuple[str | None, ...] = ()
    """The row's place in every relation that it takes part in: one join value per relation (None: not in it)."""
    commit_time_us: int = 0


class RowOutcome(msgspec.Struct, frozen=True, gc=False):
    """What became of a write. `changed` is False for a stale one and for a newer version with the same values.

    An equal version counts as changed: a redelivery repeats what a crash may have left undone. `former_links` are the
    places that the row had in earlier versions and may still have to leave.
    """

    changed: bool
    former_links: list[tuple[str | None, ...]]


class StoredRow(msgspec.Struct, frozen=True, gc=False):
    """A row as stored; `values` in the plan's column order, empty for one that is remembered as deleted."""

    version: str
    commit_time_us: int
    values: list[Any]

    @property
    def live(self) -> bool:
        return bool(self.values)


class RowStore(Protocol):
    """Current rows by table and key text."""

    async def apply(self, writes: Sequence[RowWrite]) -> list[RowOutcome]:
        """Replaces each row only by an equal or newer version, in the order given; one outcome per write."""

    async def read(self, keys: Sequence[tuple[str, str]]) -> list[StoredRow | None]:
        """Rows by (table, key text), deleted ones too, also those that a truncate refuses; None if never seen."""

    async def truncate(self, table: str, version: str) -> list[str]:
        """From now on versions of this table's rows below `version` are refused.

        Returns the keys of rows that are still to be deleted at `version`: live ones below it, and those deleted at it,
        whose deletion a crash may have left half done.
        """


class CellPlace(msgspec.Struct, frozen=True, gc=False):
    """Where a row of a wide-column table lies. `partition` is its partition key's text; None where the table has no
    clustering columns, so that a partition is a row."""

    table: str
    key: str
    partition: str | None = None


class CellRow(msgspec.Struct, frozen=True, gc=False):
    """A row's merged state (pipeline.cells, encoded) and what was made of it. `token` names this very state, empty for
    a row never seen; `tombstones` are the deletions known in its partition."""

    state: bytes
    token: bytes
    values: list[Any]
    tombstones: frozenset[bytes] = frozenset()


class CellWrite(msgspec.Struct, frozen=True, gc=False):
    """The next state of a row, merged from the one that `token` names.

    `confirmed`: what the version before led to is known to be done, so its former links are forgotten. `expires_us`:
    when something in it will have lived its time.
    """

    place: CellPlace
    token: bytes
    version: str
    values: list[Any]
    state: bytes
    links: tuple[str | None, ...] = ()
    commit_time_us: int = 0
    confirmed: bool = False
    expires_us: int | None = None


class CellOutcome(msgspec.Struct, frozen=True, gc=False):
    """`written` False: another state lies there meanwhile; read and merge again. `tombstones` as they were after the
    write: one that was not known before it may cover the row."""

    written: bool
    former_links: list[tuple[str | None, ...]] = []
    tombstones: frozenset[bytes] = frozenset()


class Look(msgspec.Struct, frozen=True, gc=False):
    """A row that is to be looked at once more at `look_us`, unless all that the last look led to gets done; then at
    `next_us` (None: never)."""

    table: str
    key: str
    look_us: int
    next_us: int | None


class CellStore(Protocol):
    """States of wide-column rows, in the same place as the rows of RowStore, which reads what was made of them."""

    async def read(self, places: Sequence[CellPlace]) -> list[CellRow]:
        """One per place."""

    async def write(self, writes: Sequence[CellWrite]) -> list[CellOutcome]:
        """Writes each row whose token is still the one given; at most one write per row in a call. The row is listed
        under its partition before it is written, and the partition's deletions are read after it: together with
        `bury` no row escapes a deletion."""

    async def bury(self, table: str, partition: str, tombstone: bytes) -> list[str]:
        """Keeps a deletion for rows that are yet to come, and gives the keys of all rows of the partition known now."""

    async def due(self, now_us: int, limit: int, done: Sequence[Look] = ()) -> list[tuple[str, str]]:
        """(table, key) of rows in which something has lived its time, about `limit` of them. Before it looks, the
        looks that are `done` give way to the next, where nobody has written the row since."""


class Contribution(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What one child adds at its parent value.

    `entries`: one entry per ordered index of the relation (None: not in it), see pipeline.sortable. `counters`: pairs
    of counter field and the amount to add to it. `distincts`: pairs of value field, whose references are counted, and
    the counter field that counts the values with at least one reference.
    """

    entries: list[bytes | None] = []
    counters: list[tuple[bytes, int]] = []
    distincts: list[tuple[bytes, bytes]] = []


class Membership(msgspec.Struct, frozen=True, gc=False):
    """A child's place under one parent value: written if newer than what is there; `contribution` None takes it out."""

    relation: int
    parent: str
    child: str
    version: str
    contribution: Contribution | None


class RelationRead(msgspec.Struct, frozen=True, gc=False):
    """What to read at one parent value.

    With `limit` the first entries of index 0; without, all counters and, for each group in `counters` (the part of a
    counter field before its last 3 bytes), the first entry of each of the `tops` indexes under that group's prefix.
    """

    relation: int
    parent: str
    limit: int = 0
    tops: int = 0


class RelationView(msgspec.Struct, frozen=True, gc=False):
    """What lies at one parent value: `entries` of the list, or `counters` by field and `tops` by group and index."""

    entries: list[bytes] = []
    counters: dict[bytes, int] = {}
    tops: dict[bytes, list[bytes | None]] = {}


class RelationStore(Protocol):
    """Children by relation and parent value, with exact aggregates; each parent value lies in one slot."""

    async def relate(self, memberships: Sequence[Membership]) -> None:
        """Writes each membership unless a newer version of the same child is there."""

    async def read(self, reads: Sequence[RelationRead]) -> list[RelationView]:
        """One view per read."""

    async def members(self, relation: int, parents: Sequence[str], limit: int) -> list[list[str] | None]:
        """Child keys under each parent value; None where there are more than `limit`."""

    async def all_members(self, relation: int, parent: str) -> list[str]:
        """All child keys under a hot parent value, read in steps that do not block the store."""


class BundleStore(Protocol):
    """Bundles and fragments, with their dirty counters."""

    async def mark_dirty(self, keys: Sequence[UnitKey]) -> list[int]:
        """Raises each key's counter and returns it; each key once. Call after rows and relations, before reading for
        assembly. Counters grow also across a loss of the store's memory."""

    async def put(self, items: Sequence[tuple[UnitKey, Stored]]) -> list[bool]:
        """Stores each unless a higher counter is there; True where the content changed."""

    async def get(self, keys: Sequence[UnitKey]) -> list[Stored | None]:
        """None where nothing was ever stored or it has been deleted."""


class AppliedPosition(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """How far one topic partition has been applied: everything of `source` committed up to `commit_time_us`.

    `cluster` is which server of the source that was, empty where its connector does not say. `awaits` is what this led
    to in the dirty topic: partition → next offset; bundles hold all of it once that has been rebuilt. The partitions of
    the dirty topic have positions too, with no source; so has one that is read but has given nothing yet, version "".
    """

    source: str
    offset: int
    version: str
    commit_time_us: int
    cluster: str = ""
    awaits: dict[int, int] = {}

    def after(self, known: AppliedPosition | None) -> AppliedPosition:
        """This position with what stays true of the one before. A batch of snapshot rows or broken records says nothing
        of time; only heartbeats tell the cluster."""
        if known is None:
            return self
        time_known = self if self.commit_time_us else known
        return AppliedPosition(
            self.source or known.source,
            self.offset,
            time_known.version,
            time_known.commit_time_us,
            self.cluster or known.cluster,
            {**known.awaits, **self.awaits},
        )


Partition = tuple[str, int]


class MarkStore(Protocol):
    """Offsets beside the data, per shard, and applied positions."""

    async def write_marks(self, offsets: Mapping[Partition, int]) -> None:
        """Writes each partition's next offset to every shard, after all writes that it covers were acknowledged.

        Raises ShardChanged, writing nothing there, when a shard is no longer the process that took those writes.
        """

    async def read_marks(self, partitions: Sequence[Partition]) -> dict[Partition, int]:
        """The smallest mark over all shards; 0 where a shard has none. Also accepts the shards' present identity, and
        gives partitions without an applied position one that says nothing: they are read, so they count."""

    async def write_applied(self, positions: Mapping[Partition, AppliedPosition]) -> None:
        """Records how far each partition has been applied; without a commit time the known one stays."""

    async def read_applied(self) -> dict[Partition, AppliedPosition]:
        """All recorded positions of this context version."""


class Fetched(msgspec.Struct, frozen=True, gc=False):
    """A bundle with the fragments that it refers to; a fragment that does not exist is absent from the dict, and so is
    one that did not come in time, which `late` names."""

    bundle: Stored | None
    fragments: dict[tuple[str, str], Stored]
    late: frozenset[tuple[str, str]] = frozenset()


@runtime_checkable
class HistoryReader(Protocol):
    """Former values, where the stores keep them; it never writes."""

    async def read_at(self, places: Sequence[tuple[UnitKey, int]]) -> list[Stored | None]:
        """Each unit as it was stored with exactly this counter, now or before; None where that is no longer kept. One
        round trip on a single node."""


class BundleReader(Protocol):
    """The read side, for lookups: it never writes."""

    async def fetch(self, keys: Sequence[str]) -> list[Fetched]:
        """Bundles by root key text with their fragments: one round trip on a single node, two on a cluster."""

    async def read_applied(self) -> dict[Partition, AppliedPosition]:
        """As MarkStore.read_applied."""
