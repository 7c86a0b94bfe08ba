"""The only module that knows faiss: exact scores, and approximate indexes of sealed segments.

An index is built once by one process, written to a file, and only searched from then on; adding while searching is
known to break faiss. Every call works in the caller's own thread alone: a search must not wait for idle processors.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy

from pipeline.core.errors import EnvironmentProblem

if TYPE_CHECKING:
    from pipeline.stores.spaces import Vector
    from pipeline.stores.vector_segments import Matrix, Rows

LISTS_PER_ROOT = 4
"""Lists of an index per square root of its rows."""
TRAINED_PER_LIST, ROWS_PER_LIST_MIN = 50, 39
PROBED_ROWS = 256
RECALL_WANTED = 0.98
PROBES_MIN, PROBED_SHARE_MIN = 32, 1 / 40
"""Questions lie farther from all rows than rows from each other, and need more lists than a sample of rows tells."""
_NEIGHBOURS = 10
_SAME_SCORE = 1e-6
_ADDED_AT_ONCE = 50_000


def library() -> ModuleType:
    """Raises EnvironmentProblem where the package is missing."""
    try:
        import faiss
    except ImportError as error:
        raise EnvironmentProblem(
            f"searching by vectors needs the package faiss-cpu ({error}); install it with pip install 'ctxpipe[search]'"
        ) from error
    faiss.omp_set_num_threads(1)  # of this thread, each has its own
    module: ModuleType = faiss
    return module


def build(matrix: Matrix, path: Path, threads: int) -> None:
    """Writes an index of all rows, numbered from 0, to a file; seconds to minutes.

    How many lists a search probes is found out by trying: so many that sampled rows find their neighbours.
    """
    faiss = library()
    faiss.omp_set_num_threads(threads)
    rows, dimension = matrix.shape
    lists = max(1, min(round(LISTS_PER_ROOT * rows**0.5), rows // ROWS_PER_LIST_MIN))
    index = faiss.IndexIVFScalarQuantizer(
        faiss.IndexFlatIP(dimension), dimension, lists, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT
    )
    chance = numpy.random.default_rng(rows)
    index.train(matrix[numpy.sort(chance.permutation(rows)[: TRAINED_PER_LIST * lists])])
    for first in range(0, rows, _ADDED_AT_ONCE):
        index.add(matrix[first : first + _ADDED_AT_ONCE])
    index.nprobe = _enough_probes(index, matrix, matrix[numpy.sort(chance.permutation(rows)[:PROBED_ROWS])])
    faiss.write_index(index, str(path))


def load(path: Path) -> tuple[Any, int]:
    """The index, and how many lists a search of it probes. Into memory: lists on disk start threads at each search."""
    index = library().read_index(str(path))
    return index, int(index.nprobe)


def all_scores(matrix: Matrix, vector: Vector) -> Vector:
    """Inner products of the vector with every row, close to exact: the last bits depend on the processor."""
    faiss = library()
    scores = numpy.empty(len(matrix), dtype=numpy.float32)
    if len(matrix):
        pointer = faiss.swig_ptr
        faiss.fvec_inner_products_ny(pointer(scores), pointer(vector), pointer(matrix), matrix.shape[1], len(matrix))
    return scores


def some_scores(matrix: Matrix, vector: Vector, rows: Rows) -> Vector:
    """As all_scores, of these rows, 64-bit numbers, only."""
    faiss = library()
    scores = numpy.empty(len(rows), dtype=numpy.float32)
    if len(rows):
        pointers = [faiss.swig_ptr(array) for array in (scores, vector, matrix, rows)]
        faiss.fvec_inner_products_by_idx(*pointers, matrix.shape[1], 1, len(rows))
    return scores


def nearest(index: Any, vector: Vector, rows: int, probes: int, allowed: Any) -> tuple[Vector, Rows]:
    """Scores and rows, best first, out of the rows whose bit is set in `allowed` (little-endian bits; None: all)."""
    faiss = library()
    selector = None if allowed is None else faiss.IDSelectorBitmap(allowed)
    parameters = faiss.SearchParametersIVF(sel=selector, nprobe=probes)
    scores, found = index.search(vector[None, :], rows, params=parameters)
    there = found[0] >= 0
    return scores[0][there], found[0][there]


def _enough_probes(index: Any, matrix: Matrix, queries: Matrix) -> int:
    """The fewest lists, in steps of a quarter, that find RECALL_WANTED of the queries' nearest rows."""
    faiss = library()
    nearest_scores, _ = faiss.knn(queries, matrix, _NEIGHBOURS, metric=faiss.METRIC_INNER_PRODUCT)
    most = int(index.nlist)
    probes = max(PROBES_MIN, round(PROBED_SHARE_MIN * most))
    while probes < most:
        index.nprobe = probes
        rows = index.search(queries, 2 * _NEIGHBOURS)[1]
        scores = numpy.einsum("qrd,qd->qr", matrix[numpy.maximum(rows, 0)], queries)
        # By score, because rows that are alike are as good as each other.
        good = (scores >= nearest_scores[:, -1:] - _SAME_SCORE) & (rows >= 0)
        if good.sum(axis=1).clip(max=_NEIGHBOURS).mean() >= RECALL_WANTED * _NEIGHBOURS:
            break
        probes += max(1, probes // 4)
    return min(probes, most)


def lists(index: Any) -> int:
    """How many lists the index has, the most that can be probed."""
    return int(index.nlist)
