"""The load of `ctxpipe bench search`: an index that is filled, searched and updated at once on one CPU."""

from __future__ import annotations

import os
import re
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy

from pipeline.stores.spaces import Placed
from pipeline.stores.vector_limits import IndexLimits
from pipeline.stores.vectors import open_index
from schemas.vectors import Chunk, VectorRecord

if TYPE_CHECKING:
    from pipeline.commands._bench_search_texts import SearchedVectors
    from pipeline.stores.vector_segments import Matrix
    from pipeline.stores.vector_upkeep import KeptIndex

K = 10
FILLED_AT_ONCE = 2_000
MAINTAIN_EVERY_S = 5.0
"""As a replica does."""
WARM_UP_S = 1.0
EDITED_SHARE = 0.3
"""How much of another text's vector an update mixes into a vector."""
DELETED_EVERY = 20
_SAME_SCORE = 1e-5
_SPACE = "bench"

Tell = Callable[[str], None]


def measure(
    searched: SearchedVectors, vectors: int, duration_s: float, updates_per_s: float, tell: Tell
) -> dict[str, Any]:
    """Blocks. From now on this process uses one CPU."""
    cpu = min(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cpu})
    with tempfile.TemporaryDirectory(prefix="ctxpipe-bench-") as folder:
        matrix = searched.matrix(vectors)
        before_mib = memory_mib()
        index = open_index(Path(folder) / "index", _SPACE, matrix.shape[1], [])
        changes = Changes(index, matrix, searched.edits)
        try:
            loaded_s = changes.fill()
            began = time.perf_counter()
            index.maintain()
            built_s = time.perf_counter() - began
            tell(f"{vectors:,} vectors: applied in {loaded_s:.1f} s, index built in {built_s:.1f} s")
            memory = memory_mib() - before_mib
            texts, questions = (recall(index, matrix, queries) for queries in (searched.texts, searched.questions))
            latencies = under_load(index, changes, searched, duration_s, updates_per_s)
            after = [recall(index, matrix, queries) for queries in (searched.texts, searched.questions)]
        finally:
            index.close()
        mapped = sum(one.matrix.nbytes for one in index.view if not one.matrix.flags.writeable)
        return {
            "vectors": vectors,
            "real_texts": min(vectors, searched.real),
            "recall_at_10": round((texts + questions) / 2, 4),
            "recall_texts": round(texts, 4),
            "recall_questions": round(questions, 4),
            "recall_at_10_after_updates": round(sum(after) / 2, 4),
            **latencies,
            "memory_mib": round(memory),
            "mapped_mib": round(mapped / 2**20),
            "applied_s": round(loaded_s, 1),
            "built_s": round(built_s, 1),
            "segments": [
                {"rows": one.count, "indexed": one.index is not None, "probes": one.probes} for one in index.view
            ],
            "environment": environment(),
        }


class Changes:
    """Fills the index with the rows of a matrix, and changes both."""

    def __init__(self, index: KeptIndex, matrix: Matrix, edits: Matrix) -> None:
        self._index, self.matrix, self._edits = index, matrix, edits
        self._chance = numpy.random.default_rng(1)
        self._offset = 0
        self._deleted: int | None = None

    def fill(self) -> float:
        """Seconds."""
        began = time.perf_counter()
        for first in range(0, len(self.matrix), FILLED_AT_ONCE):
            rows = range(first, min(first + FILLED_AT_ONCE, len(self.matrix)))
            self._index.apply([self._placed(row, True) for row in rows])
        return time.perf_counter() - began

    def change(self) -> None:
        """One bundle gets the vector of a slightly different text; some go, and come back with the next change."""
        if self._deleted is not None:
            row, self._deleted = self._deleted, None
        else:
            row = int(self._chance.integers(len(self.matrix)))
            if self._offset % DELETED_EVERY == 0:
                self._deleted = row
                self._index.apply([self._placed(row, False)])
                return
        edited = self.matrix[row] + EDITED_SHARE * self._edits[self._chance.integers(len(self._edits))]
        self.matrix[row] = edited / numpy.linalg.norm(edited)
        self._index.apply([self._placed(row, True)])

    def _placed(self, row: int, there: bool) -> Placed:
        self._offset += 1
        record = VectorRecord(
            space=_SPACE,
            counter=self._offset,
            bundle_hash=f"{self._offset:032x}",
            text_hash=f"{self._offset:032x}",
            dimension=self.matrix.shape[1],
            chunks=[Chunk(0, 100)],
            vectors=self.matrix[row].tobytes(),
        )
        return Placed(0, self._offset, f"bench:{row}", record if there else None)

    def settle(self) -> None:
        """What was deleted is back."""
        if self._deleted is not None:
            self.change()


def recall(index: KeptIndex, matrix: Matrix, queries: Matrix) -> float:
    """The mean share of the K nearest rows that a search finds; rows that are as near as the last one count as it."""
    found = []
    for query in queries:
        least = float(numpy.partition(matrix @ query, -K)[-K])
        scores = [hit.score for hit in index.search(query, K)]
        found.append(sum(score >= least - _SAME_SCORE for score in scores) / K)
    return float(numpy.mean(found))


def under_load(
    index: KeptIndex, changes: Changes, searched: SearchedVectors, duration_s: float, updates_per_s: float
) -> dict[str, Any]:
    """Searches one after the other for so long. `computing_ms` is the processor time of their own thread: what took
    longer waited for updates and upkeep, or for other processes of the machine."""
    queries = numpy.concatenate([searched.texts, searched.questions])
    numpy.random.default_rng(2).shuffle(queries)
    stop, late_ms = threading.Event(), list[float]()
    updates = threading.Thread(target=_update, args=(changes, updates_per_s, stop, late_ms))
    upkeep = threading.Thread(target=_maintain, args=(index, stop))
    for thread in (updates, upkeep):
        thread.start()
    took, computed, number, began = list[float](), list[float](), 0, time.perf_counter()
    while (now := time.perf_counter()) - began < duration_s + WARM_UP_S:
        computing = time.thread_time()
        index.search(queries[number % len(queries)], K)
        if now - began >= WARM_UP_S:
            computed.append(1000 * (time.thread_time() - computing))
            took.append(1000 * (time.perf_counter() - now))
        number += 1
    stop.set()
    for thread in (updates, upkeep):
        thread.join()
    changes.settle()
    return {
        **_percentiles(took),
        "computing_ms": _percentiles(computed),
        "searches": len(took),
        "searches_per_s": round(len(took) / duration_s),
        "updates": len(late_ms),
        "updates_per_s": round(len(late_ms) / (duration_s + WARM_UP_S), 1),
        "update_p99_late_ms": round(float(numpy.percentile(late_ms, 99)), 1) if late_ms else None,
    }


def _percentiles(times_ms: list[float]) -> dict[str, float]:
    return {
        f"p{name}_ms": round(float(numpy.percentile(times_ms, at)), 2)
        for name, at in (("50", 50), ("90", 90), ("99", 99), ("99_9", 99.9), ("100", 100))
    }


def memory_mib() -> float:
    """Of this process alone: neither what is mapped from files, which the kernel takes back when it needs the memory,
    nor what it shares."""
    found = re.search(r"^RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024


def environment() -> dict[str, Any]:
    import platform
    from importlib import metadata

    model = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return {
        "cpu": model[1] if model else platform.machine(),
        "cpus_used": 1,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("faiss-cpu", "numpy")},
        "limits": IndexLimits().model_dump(),
    }


def _update(changes: Changes, rate_per_s: float, stop: threading.Event, late_ms: list[float]) -> None:
    began = time.perf_counter()
    while rate_per_s and not stop.is_set():
        due = began + len(late_ms) / rate_per_s
        pause = due - time.perf_counter()
        if pause > 0 and stop.wait(pause):
            return
        changes.change()
        late_ms.append(1000 * (time.perf_counter() - due))


def _maintain(index: KeptIndex, stop: threading.Event) -> None:
    while not stop.wait(MAINTAIN_EVERY_S):
        index.maintain()
