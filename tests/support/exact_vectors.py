"""The reference of a vector index with faults to script."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.stores.spaces import Condition, Hit
from tests.support.memory_vectors import MemoryVectors


class ExactVectors(MemoryVectors):
    """`error` is raised by the next searches; `on_search` is called in each."""

    def __init__(self, dimension: int, marked: Sequence[str] = ()) -> None:
        super().__init__(dimension, marked)
        self.error: Exception | None = None
        self.on_search: Any = None
        self.closed = False

    def search(self, vector: Any, k: int, conditions: Sequence[Condition] = (), min_score: float = -1.0) -> list[Hit]:
        if self.on_search is not None:
            self.on_search()
        if self.error is not None:
            raise self.error
        return super().search(vector, k, conditions, min_score)

    def close(self) -> None:
        self.closed = True
