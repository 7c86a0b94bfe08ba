"""The protocols of embedding spaces: their records, what is known of each bundle's vector, and the two indexes.

A context version has at most one *serving* space, which answers searches, at most one *candidate* that is being built
beside it, and the *previous* one, which stays fed for an instant return.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

import msgspec

from schemas.vectors import Chunk, FilterValue, TextRecord, VectorRecord

if TYPE_CHECKING:
    import numpy

    Vector: TypeAlias = numpy.ndarray[tuple[int], numpy.dtype[numpy.float32]]

SpaceState: TypeAlias = Literal["candidate", "serving", "previous", "retired"]


class SpaceRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What a space is, kept beside the context version's state. `definition` is pipeline.embedding.space.Definition,
    encoded; `canaries` the vectors that its model gave to the canary texts, float32 little-endian.

    `evidence`: what promoted it or refused it, as JSON; empty before anybody judged.
    """

    space: str
    state: SpaceState
    definition: bytes
    canaries: bytes
    dimension: int
    created_us: int
    changed_us: int = 0
    evidence: bytes = b""


class SpaceStore(Protocol):
    """The spaces of one context version. Raises Retryable when the store is away."""

    async def register(self, record: SpaceRecord) -> SpaceRecord:
        """Keeps the record unless one of this id is there, which is given back. A retired one begins anew. The first
        space of a version is its candidate like any other."""

    async def all(self) -> list[SpaceRecord]:
        """Oldest first; also retired ones."""

    async def serving(self) -> str | None:
        """The space that answers searches; None before the first was promoted."""

    async def promote(self, space: str, instead_of: str | None, evidence: bytes) -> bool:
        """`space` serves from now on and `instead_of` becomes the previous one (whichever was that is retired), in one
        step. False, and nothing changes, where another than `instead_of` serves meanwhile, or `space` is not fed."""

    async def note(self, space: str, evidence: bytes) -> None:
        """Keeps what a judgement found, without a change of state."""

    async def retire(self, space: str) -> bool:
        """Out of use: nobody feeds it. False for the one that serves."""


REFUSED = "refused: "
"""Begins the problem of a text that will never have a vector (Poison), and of a template that fails on its bundle: a
space is complete without those. Every other problem may pass, and a space with one is not complete."""


CUT = "cut: the end of the text is in no vector"
"""The problem of a text that was too long: its vector is as good as it gets, and a person may want to know."""


class VectorState(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What is known of one bundle's text and vector in one space.

    `counter` and `bundle_hash` are those of the bundle that was looked at last; `text_hash` is the text made from it,
    empty where it has none; `vector_hash` is the text whose vector is in Kafka. `problem` says why there is no text or
    no newer vector. The vector is current while `vector_hash` equals `text_hash`.
    """

    counter: int
    bundle_hash: str
    text_hash: str
    vector_hash: str = ""
    problem: str = ""
    filters_hash: str = ""
    """Of the values that a search may be narrowed by, as they were sent last."""
    asked_at: int = -1
    """Offset of the newest request that the look knew of: the newest request's look counts."""
    text_at: int = -1
    """Offset of the newest record in the text topic that Redis knows of, -1 none: what lies behind it was sent by a
    late writer, or before Redis lost its last writes."""
    vector_at: int = -1
    """The same of the vector topic; `vector_hash` is of this record."""


class VectorStateStore(Protocol):
    """Per space and bundle key. Late writers change nothing: lower counters and offsets are refused."""

    async def read_states(self, space: str, keys: Sequence[str]) -> list[VectorState | None]:
        """One per key."""

    async def write_texts(self, space: str, states: Mapping[str, VectorState]) -> list[bool]:
        """Takes everything but `vector_hash` and `vector_at`, which stay as they are, and `problem`, which stays where
        the text does. One answer per key, in order: False was refused, for a lower counter, `asked_at` or `text_at`."""

    async def write_vectors(
        self, space: str, hashes: Mapping[str, tuple[str, str]], offsets: Mapping[str, int] | None = None
    ) -> list[bool]:
        """Key → (text hash of the vector that is durable in Kafka now, problem). False where another text is wanted
        meanwhile; the vector's hash is kept all the same, the problem is not. An empty hash says that the vector
        is gone, and leaves the problem as it is. A record of a lower offset than the known one changes nothing, of the
        known one only the problem, where it tells of one; a record without an offset is taken for the newest."""

    async def write_problems(self, space: str, problems: Mapping[str, tuple[str, str]]) -> None:
        """Key → (text hash, why there is no vector of this text yet, or never). Changes `problem` alone, and only
        where that text is still the wanted one. Empty: the problem is over."""

    def scan_states(self, space: str) -> AsyncIterator[tuple[str, VectorState]]:
        """All of a space, in no order."""

    async def forget(self, space: str) -> int:
        """Deletes all states of a retired space; how many there were."""


Comparison: TypeAlias = Literal["eq", "in", "lt", "le", "gt", "ge"]


class Condition(msgspec.Struct, frozen=True):
    """One condition on a marked field; `in` takes a list. A bundle whose field is a list meets `eq` and `in` by any of
    its values. Null and missing values meet only `eq` null."""

    field: str
    comparison: Comparison
    value: FilterValue | list[FilterValue]


class Hit(msgspec.Struct, frozen=True):
    """A bundle's best piece. `score` is the cosine to the query, computed from the current vector."""

    key: str
    score: float
    chunk: Chunk
    chunk_number: int
    text_hash: str
    bundle_hash: str
    counter: int


class Placed(msgspec.Struct, frozen=True):
    """A record of a topic partition; `record` None: the key has none any more."""

    partition: int
    offset: int
    key: str
    record: VectorRecord | None


class PlacedText(msgspec.Struct, frozen=True):
    """As Placed, of the text topic."""

    partition: int
    offset: int
    key: str
    record: TextRecord | None


class VectorIndex(Protocol):
    """One space's vectors in memory and on disk. Made for one event loop that applies and many searches beside it.

    `apply` is quick and not concurrent with itself; what it applied is seen by the next search. `search` blocks for
    milliseconds and may run in threads, beside `apply` and `maintain`. `maintain` seals, merges and snapshots in the
    background; call it now and then from one place.
    """

    def apply(self, records: Sequence[Placed]) -> None:
        """In offset order per partition. Of a key's records the last one counts, as it does after compaction: a late
        writer's record is followed by the right one (pipeline.streams.vector_echo)."""

    def search(
        self, vector: Vector, k: int, conditions: Sequence[Condition] = (), min_score: float = -1.0
    ) -> list[Hit]:
        """The k nearest bundles, best first, ties by key. Raises ValueError for a k outside of 1 to 1,000, a vector of
        another dimension or with NaN, and a field that is not marked."""

    def note_filters(self, key: str, counter: int, filters: Mapping[str, FilterValue | list[FilterValue]]) -> None:
        """The values of a bundle's marked fields, from its text record: they change without a new vector. Ignored for
        a key without vectors and for a counter below the one that the values in place came with."""

    def vectors_of(self, key: str) -> VectorRecord | None:
        """The current vectors of a bundle, for "more like this"."""

    def positions(self) -> dict[int, int]:
        """Partition → the offset after the last one applied: where a replay goes on."""


class TextIndex(Protocol):
    """One space's texts for lexical search (BM25). As VectorIndex in everything else."""

    def apply(self, records: Sequence[PlacedText]) -> None: ...

    def search(self, text: str, k: int, conditions: Sequence[Condition] = ()) -> list[tuple[str, float]]:
        """Key and BM25 score, best first. Words of the query are joined by or; no query syntax, so no errors of it."""

    def positions(self) -> dict[int, int]: ...
