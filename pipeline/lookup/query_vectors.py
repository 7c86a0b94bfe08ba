"""A query's text → its vector, by the engine of the space that answers, outside the event loop."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.core.errors import Poison, Retryable
from pipeline.embedding.batching import BatchLimits, EmbeddingPool
from pipeline.embedding.engine import Embedded, Engine

if TYPE_CHECKING:
    from pipeline.stores.spaces import Vector

KEPT_QUERIES = 2000
WAITING_MAX = 256
BATCH_TEXTS_MAX = 16


class QueryEmbedder:
    """Of one space, so that a kept vector never meets another one. Made in the event loop that uses it; the engine is
    closed with it. Queries that come while the engine is busy are embedded together."""

    def __init__(self, engine: Engine, waiting_max: int = WAITING_MAX) -> None:
        self._engine, self._waiting_max = engine, waiting_max
        self._pool = EmbeddingPool(_Queries(engine), BatchLimits(BATCH_TEXTS_MAX, 0.0, waiting_max))
        self._kept: OrderedDict[str, Vector] = OrderedDict()

    async def embed(self, text: str) -> Vector:
        """Raises Retryable, also where too many wait already, Poison for a text that never works, and Fatal."""
        known = self._kept.get(text)
        if known is not None:
            self._kept.move_to_end(text)
            return known
        if self._pool.queued >= self._waiting_max:
            raise Retryable(f"{self._pool.queued} queries wait for the embedding engine already")
        found = (await self._pool.embed([text]))[0]
        if isinstance(found, Poison):
            raise found
        self._kept[text] = found.vector
        if len(self._kept) > KEPT_QUERIES:
            self._kept.popitem(last=False)
        return found.vector

    async def close(self) -> None:
        """Waits for what runs in a thread."""
        await self._pool.close()
        self._engine.close()


class _Queries:
    """The engine, with every text a query."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self.identity = engine, engine.identity
        self.texts_max, self.tokens_max = engine.texts_max, engine.tokens_max

    def embed(self, texts: Sequence[str], *, query: bool = True) -> Embedded:
        return self._engine.embed(texts, query=True)

    def token_ends(self, text: str) -> list[int]:
        return self._engine.token_ends(text)

    def close(self) -> None:
        self._engine.close()
