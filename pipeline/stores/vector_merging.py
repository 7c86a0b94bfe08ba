"""Makes one sealed segment out of several, beside searches and changes; which ones is decided here too.

The new segment is written from what was current when it began. Its rows are dead at first; once its index is built,
each bundle that has not changed since is pointed to it, a few at a time, and the old segments go. Whoever looks finds a
bundle in its old rows or in its new ones: rows become current in a segment that stands later in the view before they
die in an earlier one, and searches go through the view from the first to the last.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy

from pipeline.stores import faiss_library
from pipeline.stores.pacing import paced
from pipeline.stores.vector_files import (
    INDEX,
    MATRIX,
    RECORDS,
    Record,
    encode_records,
    sync_file,
    sync_folder,
    write_file,
)
from pipeline.stores.vector_index import SegmentedIndex
from pipeline.stores.vector_limits import IndexLimits
from pipeline.stores.vector_segments import Entry, Segment

BUILDER = "pipeline.stores.vector_builder"
_COPIED_AT_ONCE = 500
_MOVED_AT_ONCE = 64
_LOOK_EVERY_S = 0.1
_ERROR_CHARACTERS = 1_000

_log = logging.getLogger(__name__)

Found = tuple[str, Entry]


class BuildFailed(Exception):
    """An index could not be built; what is there stays as it is."""


def choose(sealed: Sequence[Segment], limits: IndexLimits) -> list[Segment]:
    """Which segments should become one now; none: nothing is to be done.

    Those without an index when together they have too many rows, those with too many dead ones, the smallest when there
    are too many; and with them all that are no larger than the result, so that a row is copied a few times in its life.
    """
    flat = [segment for segment in sealed if segment.index is None]
    chosen = [segment for segment in sealed if segment.index is not None and _is_worn(segment, limits)]
    if sum(segment.count for segment in flat) > limits.flat_rows_max:
        chosen += flat
    others = sorted((one for one in sealed if one not in chosen), key=lambda segment: segment.living)
    surplus = len(others) + bool(chosen) - limits.segments_max
    if surplus > 0:
        taken = surplus if chosen else surplus + 1
        chosen, others = chosen + others[:taken], others[taken:]
    rows = sum(segment.living for segment in chosen)
    for segment in others if chosen else ():
        if segment.living <= rows:
            chosen.append(segment)
            rows += segment.living
    return chosen


def drop_dead(index: SegmentedIndex) -> None:
    """Sealed segments without a current row go."""
    with index.lock:
        *sealed, head = index.view
        if any(segment.living == 0 for segment in sealed):
            index.view = (*(segment for segment in sealed if segment.living), head)


def merge(index: SegmentedIndex, sources: Sequence[Segment], folder: Path, stopping: Callable[[], bool]) -> bool:
    """Blocks until the sources' current rows are in one segment, which lies in `folder`; it is made.

    False when `stopping` became true before. Raises BuildFailed and OSError; nothing has changed then.
    """
    found = [pair for source in sources for pair in living_entries(index, source)]
    folder.mkdir()
    write_segment(folder, found)
    rows = sum(entry.rows for _, entry in paced(found))
    indexed = rows > index.limits.flat_rows_max
    if indexed and not _build(folder, index.dimension, index.limits, stopping):
        return False
    sync_folder(folder)
    new = open_segment(index, folder, rows, indexed)
    _publish(index, sources, new, found)
    return True


def living_entries(index: SegmentedIndex, segment: Segment, alive: numpy.ndarray | None = None) -> Iterator[Found]:
    """What is current of a segment, in the order of its rows; needs no lock. `alive`: only of these rows."""
    count = segment.count if alive is None else len(alive)
    firsts = segment.owners[:count] == numpy.arange(count, dtype=numpy.int32)
    for row in paced(numpy.flatnonzero(firsts & (segment.alive[:count] if alive is None else alive)).tolist()):
        entry = index.entry_at(segment, row)
        if entry is not None:
            yield segment.keys[row], entry


def write_segment(folder: Path, found: Sequence[Found]) -> None:
    """The rows one behind the other, and what they belong to."""
    write_file(folder / MATRIX, _copied_rows(found))
    write_file(folder / RECORDS, encode_records(_numbered(found)))


def open_segment(index: SegmentedIndex, folder: Path, rows: int, indexed: bool) -> Segment:
    """A segment from its files: all its rows are dead and nobody's."""
    path, dimension = folder / MATRIX, index.dimension
    if rows >= index.limits.mapped_rows_min:
        matrix = numpy.memmap(path, dtype="<f4", mode="r", shape=(rows, dimension)).view(numpy.ndarray)
    else:
        matrix = numpy.fromfile(path, dtype="<f4").reshape(rows, dimension)
    segment = Segment(folder.name, matrix, len(index.filters.fields))
    segment.keys = [""] * rows
    segment.count = segment.dead = rows
    segment.folder = folder
    if indexed:
        segment.index, segment.probes = faiss_library.load(folder / INDEX)
    return segment


def _is_worn(segment: Segment, limits: IndexLimits) -> bool:
    return segment.dead > limits.dead_share_max * segment.count


def _copied_rows(found: Sequence[Found]) -> Iterator[memoryview]:
    for part in _parts(found, _COPIED_AT_ONCE):
        for segment in dict.fromkeys(entry.segment for _, entry in part):
            # Sources come one after the other, so that the order stays when each is copied on its own.
            rows = [
                numpy.arange(entry.first_row, entry.first_row + entry.rows)
                for _, entry in part
                if entry.segment is segment
            ]
            yield segment.matrix[numpy.concatenate(rows)].data.cast("B")


def _parts(found: Sequence[Found], most: int) -> Iterator[Sequence[Found]]:
    return (found[first : first + most] for first in range(0, len(found), most))


def _numbered(found: Sequence[Found]) -> Iterator[Record]:
    row = 0
    for key, entry in paced(found):
        yield Record(key, entry.counter, row, entry.rows, entry.details)
        row += entry.rows


def _build(folder: Path, dimension: int, limits: IndexLimits, stopping: Callable[[], bool]) -> bool:
    """In a process of its own. False when it was ended because of `stopping`."""
    words = [folder.absolute(), dimension, limits.builder_threads, limits.builder_niceness]
    command = [sys.executable, "-m", BUILDER, *map(str, words)]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(limits.builder_threads))
    with (
        (folder / "errors").open("w+b") as errors,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=errors, stderr=errors, env={**os.environ, **threads}
        ) as process,
    ):
        while process.poll() is None:
            if stopping():
                process.kill()
                return False
            time.sleep(_LOOK_EVERY_S)
        if process.returncode:
            errors.seek(0)
            said = errors.read().decode(errors="replace").strip()[-_ERROR_CHARACTERS:]
            raise BuildFailed(f"building an index ended with {process.returncode}: {said or 'without a word'}")
    (folder / "errors").unlink()
    sync_file(folder / INDEX)
    return True


def _publish(index: SegmentedIndex, sources: Sequence[Segment], new: Segment, found: Sequence[Found]) -> None:
    row = 0
    for key, entry in paced(found):
        new.name_rows(key, row, entry.rows)
        row += entry.rows
    with index.lock:
        *sealed, head = index.view
        index.view = (*sealed, new, head)
    row = 0
    for part in paced(_parts(found, _MOVED_AT_ONCE)):
        with index.lock:
            for key, entry in part:
                _move(index, key, entry, new, row)
                row += entry.rows
    with index.lock:
        index.view = tuple(segment for segment in index.view if segment not in sources)
    if new.living == 0:
        drop_dead(index)


def _move(index: SegmentedIndex, key: str, entry: Entry, new: Segment, row: int) -> None:
    current = index.entries.get(key)
    if current is None or current.segment is not entry.segment or current.first_row != entry.first_row:
        return  # changed meanwhile: newer vectors stand elsewhere, or there are none
    codes = [int(column[entry.first_row]) for column in entry.segment.codes]
    new.revive(row, entry.rows, codes)
    if current.details is not entry.details:
        new.noted.add(row)
    index.entries[key] = Entry(current.counter, new, row, entry.rows, current.details)
    entry.segment.bury(entry.first_row, entry.rows)
