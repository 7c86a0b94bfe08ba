"""The process that builds a sealed segment's faiss index: `python -m pipeline.stores.vector_builder`.

A process of its own with little priority, because minutes of k-means would take processor time from searches. It ends
with the process that started it, which holds its standard input open.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

import numpy

from pipeline.stores import faiss_library
from pipeline.stores.vector_files import INDEX, MATRIX


def main(arguments: list[str]) -> None:
    """FOLDER DIMENSION THREADS NICENESS: the folder's matrix is read, its index written beside it."""
    folder, dimension, threads, niceness = Path(arguments[0]), *map(int, arguments[1:4])
    os.nice(niceness)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    matrix = numpy.memmap(folder / MATRIX, dtype="<f4", mode="r").reshape(-1, dimension)
    faiss_library.build(matrix, folder / INDEX, threads)


def _end_with_parent() -> None:
    os.read(0, 1)  # not through sys.stdin, whose lock would outlive this thread
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main(sys.argv[1:])
