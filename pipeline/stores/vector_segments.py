"""Rows of vectors: the head that takes new ones and the sealed segments are both a Segment; an Entry names a bundle's.

A row is written once, before it is counted, and never again, so that whoever holds an entry reads the vectors that the
entry was made with, whatever is applied meanwhile.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import numpy

from pipeline.stores.vector_filters import Flags, Value
from schemas.vectors import Chunk

Matrix: TypeAlias = numpy.ndarray[tuple[int, int], numpy.dtype[numpy.float32]]
Rows: TypeAlias = numpy.ndarray[tuple[int], numpy.dtype[numpy.int64]]


class Details(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a hit says of its bundle; kept encoded, because a million of them shall not be a million objects.

    `filters` stand in the order of the marked fields and came with `filters_counter`."""

    bundle_hash: str
    text_hash: str
    chunks: list[Chunk]
    tokens_cut: int
    commit_time_us: int
    filters: list[Value]
    filters_counter: int


_ENCODER = msgspec.msgpack.Encoder()
_DETAILS = msgspec.msgpack.Decoder(Details)


def encode_details(details: Details) -> bytes:
    return _ENCODER.encode(details)


def decode_details(encoded: bytes) -> Details:
    return _DETAILS.decode(encoded)


class Entry(msgspec.Struct, frozen=True, gc=False, eq=False):
    """The current vectors of one bundle: `rows` of them in `segment` from `first_row` on."""

    counter: int
    segment: Segment
    first_row: int
    rows: int
    details: bytes


class Segment:
    """`matrix` has room for `capacity` rows; the first `count` are there. `keys` names each row's bundle, `owners` the
    first row of it, `codes` its filters' values by number, one column per field, `alive` whether it is current.

    One writer. `alive` and `codes` change in place, which a search may see late: it looks at the entries themselves
    before it answers. `folder` is where a sealed segment lies on disk, `index` its faiss index where it has one;
    `noted` are first rows whose details are newer than those on disk.
    """

    def __init__(self, name: str, matrix: Matrix, fields: int) -> None:
        capacity = len(matrix)
        self.name = name
        self.matrix = matrix
        self.count = 0
        self.dead = 0
        self.keys: list[str] = []
        self.owners = numpy.zeros(capacity, dtype=numpy.int32)
        self.alive: Flags = numpy.zeros(capacity, dtype=numpy.bool_)
        self.codes = [numpy.zeros(capacity, dtype=numpy.int32) for _ in range(fields)]
        self.folder: Path | None = None
        self.noted: set[int] = set()
        self.index: Any = None
        self.probes = 0

    @property
    def capacity(self) -> int:
        return len(self.matrix)

    @property
    def living(self) -> int:
        return self.count - self.dead

    def append(self, key: str, vectors: Matrix, codes: Sequence[int]) -> int:
        """The first of the new rows, which searches see from now on. The caller looked whether there is room."""
        first, end = self.count, self.count + len(vectors)
        self.matrix[first:end] = vectors
        self.keys.extend([key] * len(vectors))
        self.owners[first:end] = first
        self.alive[first:end] = True
        for column, code in zip(self.codes, codes, strict=True):
            column[first:end] = code
        self.count = end
        return first

    def name_rows(self, key: str, first: int, rows: int) -> None:
        """Whose the rows of a segment are that came with its vectors; before anybody reads it."""
        self.keys[first : first + rows] = [key] * rows
        self.owners[first : first + rows] = first

    def bury(self, first: int, rows: int) -> None:
        """The rows' bundle has newer vectors or none: searches pass over them."""
        self.alive[first : first + rows] = False
        self.dead += rows

    def revive(self, first: int, rows: int, codes: Sequence[int]) -> None:
        """Rows of a segment that was built from others: they stand for their bundle from now on."""
        self.recode(first, rows, codes)
        self.alive[first : first + rows] = True
        self.dead -= rows

    def recode(self, first: int, rows: int, codes: Sequence[int]) -> None:
        """Other values to filter by."""
        for column, code in zip(self.codes, codes, strict=True):
            column[first : first + rows] = code


def new_head(name: str, rows: int, dimension: int, fields: int) -> Segment:
    """An empty segment in memory; pages that no row has reached yet cost none, and all go back when it is merged.

    Not from the allocator, which keeps freed pieces of this size when small objects lie between them.
    """
    memory = mmap.mmap(-1, 4 * rows * dimension, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    matrix = numpy.frombuffer(memory, dtype=numpy.float32).reshape(rows, dimension)
    return Segment(name, matrix, fields)
