"""Snapshots of a vector index: what lies on disk when it is read next is the state at one moment, or nothing.

Sealed segments are written once. Each snapshot says which of their rows were current and what has changed about those
since, and holds the head's bundles as a whole. A bundle that changes while a snapshot is being written is left out of
it: the change lies behind the snapshot's positions, and comes again from the topic.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import numpy

from pipeline.stores.pacing import paced
from pipeline.stores.vector_files import (
    INDEX,
    MATRIX,
    RECORDS,
    Manifest,
    Record,
    SnapshotRefused,
    StoredFile,
    StoredSegment,
    describe_file,
    encode_records,
    read_manifest,
    read_records,
    sweep,
    sync_folder,
    write_file,
    write_manifest,
)
from pipeline.stores.vector_filters import Flags
from pipeline.stores.vector_index import SegmentedIndex
from pipeline.stores.vector_merging import living_entries, open_segment, write_segment
from pipeline.stores.vector_segments import Entry, Segment, decode_details


class SegmentState(msgspec.Struct, frozen=True):
    """`alive`: one bit per row, little-endian. `noted`: first row → details that are newer than the segment's."""

    alive: bytes
    noted: dict[int, bytes]


class Cut(msgspec.Struct, frozen=True):
    """What was current at one moment."""

    view: tuple[Segment, ...]
    alive: list[Flags]
    noted: list[set[int]]
    positions: dict[int, int]
    changes: int


class Snapshots:
    """Those of one index in its folder, which nobody else writes to."""

    def __init__(self, index: SegmentedIndex, folder: Path) -> None:
        self._index = index
        self.folder = folder
        self._described: dict[str, StoredFile] = {}
        self.number = 0

    def next_name(self, kind: str) -> str:
        """Of a file or folder that was never there before."""
        self.number += 1
        return f"{kind}-{self.number}"

    def save(self) -> int:
        """Blocks. How many changes there had been at the moment that is on disk now."""
        with self._index.lock:
            cut = self._cut()
        stored = [self._seal(segment, alive) for segment, alive, _ in self._sealed(cut)]
        head, state = self.next_name("head"), self.next_name("state")
        (self.folder / head).mkdir()
        write_segment(self.folder / head, list(living_entries(self._index, cut.view[-1], cut.alive[-1])))
        write_file(self.folder / state, [msgspec.msgpack.encode(self._states(cut, stored))])
        sync_folder(self.folder)
        files = [file for one in stored for file in self._files(one)]
        files += [describe_file(self.folder, name) for name in (f"{head}/{MATRIX}", f"{head}/{RECORDS}", state)]
        manifest = Manifest(
            space=self._index.space,
            dimension=self._index.dimension,
            fields=list(self._index.filters.fields),
            positions=cut.positions,
            segments=stored,
            head=head,
            state=state,
            files=files,
        )
        write_manifest(self.folder, manifest)
        self._sweep(manifest)
        return cut.changes

    def load(self) -> bool:
        """Into the index, which is empty and nobody's yet. False where there is no snapshot.

        Raises SnapshotRefused; the index may be half full then.
        """
        fields = self._index.filters.fields
        manifest = read_manifest(self.folder, self._index.space, self._index.dimension, fields)
        if manifest is None:
            sweep(self.folder, ())
            return False
        self._described = {file.name: file for file in manifest.files}
        self.number = max(_number(name) for name in (manifest.state, *(one.name for one in manifest.segments)))
        try:
            content = (self.folder / manifest.state).read_bytes()
            states = msgspec.msgpack.decode(content, type=dict[str, SegmentState])
            segments = [self._open(one, states[one.name]) for one in manifest.segments]
            self._fill_head(self.folder / manifest.head)
        except (msgspec.DecodeError, KeyError, IndexError, ValueError, RuntimeError, OSError) as error:
            raise SnapshotRefused(f"what it holds does not fit together: {error!r}") from error
        self._index.view = (*segments, *self._index.view)
        self._index.applied = dict(manifest.positions)
        self._sweep(manifest)
        return True

    def _cut(self) -> Cut:
        view = self._index.view
        return Cut(
            view,
            [segment.alive[: segment.count].copy() for segment in view],
            [set(segment.noted) for segment in view],
            dict(self._index.applied),
            self._index.changes,
        )

    def _sealed(self, cut: Cut) -> Iterator[tuple[Segment, Flags, set[int]]]:
        yield from zip(cut.view[:-1], cut.alive[:-1], cut.noted[:-1], strict=True)

    def _seal(self, segment: Segment, alive: Flags) -> StoredSegment:
        """Writes a full head that has no files yet; how a sealed segment stands in the manifest."""
        if segment.folder is None:
            folder = self.folder / self.next_name("segment")
            folder.mkdir()
            found = list(living_entries(self._index, segment, alive))
            write_file(folder / MATRIX, [segment.matrix[: segment.count].data.cast("B")])
            write_file(folder / RECORDS, encode_records(_in_place(found)))
            sync_folder(folder)
            segment.folder = folder
        return StoredSegment(segment.folder.name, segment.count, segment.index is not None)

    def _files(self, stored: StoredSegment) -> list[StoredFile]:
        names = [MATRIX, RECORDS, *([INDEX] if stored.indexed else [])]
        found = []
        for name in (f"{stored.name}/{name}" for name in names):
            if name not in self._described:
                self._described[name] = describe_file(self.folder, name)
            found.append(self._described[name])
        return found

    def _states(self, cut: Cut, stored: Sequence[StoredSegment]) -> dict[str, SegmentState]:
        segments = {}
        for one, (segment, alive, noted) in zip(stored, self._sealed(cut), strict=True):
            rows = [(row, self._index.entry_at(segment, row)) for row in paced(noted)]
            newer = {row: entry.details for row, entry in rows if entry is not None}
            segments[one.name] = SegmentState(numpy.packbits(alive, bitorder="little").tobytes(), newer)
        return segments

    def _open(self, stored: StoredSegment, state: SegmentState) -> Segment:
        index, folder = self._index, self.folder / stored.name
        alive = numpy.unpackbits(numpy.frombuffer(state.alive, numpy.uint8), count=stored.rows, bitorder="little")
        segment = open_segment(index, folder, stored.rows, stored.indexed)
        for record in paced(read_records(folder / RECORDS)):
            segment.name_rows(record.key, record.first_row, record.rows)
            if alive[record.first_row]:
                details = state.noted.get(record.first_row, record.details)
                entry = Entry(record.counter, segment, record.first_row, record.rows, details)
                segment.revive(record.first_row, record.rows, index.adopt(record.key, entry))
        segment.noted.update(state.noted)
        return segment

    def _fill_head(self, folder: Path) -> None:
        index = self._index
        matrix = numpy.fromfile(folder / MATRIX, dtype="<f4").reshape(-1, index.dimension)
        for record in paced(read_records(folder / RECORDS)):
            vectors = matrix[record.first_row : record.first_row + record.rows]
            index.append(record.key, record.counter, vectors, decode_details(record.details))

    def _sweep(self, manifest: Manifest) -> None:
        used = {segment.folder.name for segment in self._index.view if segment.folder is not None}
        sweep(self.folder, used | {manifest.head, manifest.state} | {segment.name for segment in manifest.segments})
        self._described = {file.name: file for file in manifest.files}


def _in_place(found: Sequence[tuple[str, Entry]]) -> Iterator[Record]:
    return (Record(key, entry.counter, entry.first_row, entry.rows, entry.details) for key, entry in found)


def _number(name: str) -> int:
    return int(name.rpartition("-")[2])
