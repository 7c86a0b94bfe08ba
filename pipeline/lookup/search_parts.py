"""The two searches behind an answer, by vector and by words: side by side inside a budget, each may fail by itself."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline.core import metrics
from pipeline.core.errors import CtxpipeError, Retryable
from pipeline.lookup.ranking import Ranked, by_vector, by_words, fused
from pipeline.lookup.search_answer import AnsweredMode
from pipeline.lookup.search_request import BadSearch, SearchRequest
from pipeline.lookup.spaces import OpenSpace, SearchedTexts
from pipeline.stores.spaces import Hit, VectorIndex

if TYPE_CHECKING:
    from pipeline.stores.spaces import Vector

K_MAX = 1000
SPARE = 8
"""So many more are ranked, because a hit whose bundle is gone is left out."""
FUSED_MIN = 50
"""At least so many of each search are fused."""
THREADS = 4
RUNNING_MAX = 1000

Result = TypeVar("Result")
_LOG = logging.getLogger("ctxpipe.lookup")


class SearchUnavailable(Retryable):
    """Nothing could answer; the text is fit for a caller."""


class SearchThreads:
    """Where indexes are searched. What comes too late goes on until it is done, and counts until then."""

    def __init__(self, threads: int = THREADS, running_max: int = RUNNING_MAX) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="search")
        self._running, self._running_max, self._counting = 0, running_max, threading.Lock()

    async def run(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Raises SearchUnavailable where so many run already that this one would only come too late."""
        with self._counting:
            if self._running >= self._running_max:
                raise SearchUnavailable(f"{self._running} searches run at once already; try again")
            self._running += 1
        running = self._pool.submit(function, *arguments)
        running.add_done_callback(self._ended)
        return await asyncio.wrap_future(running)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _ended(self, running: Future[Any]) -> None:
        with self._counting:
            self._running -= 1


@dataclass(frozen=True, slots=True)
class Query:
    """What is looked for, in words and as a vector of length 1, as far as each is known; `itself` is no hit."""

    text: str | None
    vector: Vector | None
    itself: str | None = None


@dataclass(frozen=True, slots=True)
class Order:
    """Hits, best first. `degraded` says why less answered than was asked."""

    ranked: list[Ranked]
    mode: AnsweredMode
    degraded: str | None = None


class _PartFailed(Exception):
    """A part of the search, and why it gives nothing; the text is fit for a caller."""

    def __init__(self, part: str, reason: str) -> None:
        self.part, self.reason = part, reason
        super().__init__(reason)


@dataclass(frozen=True, slots=True)
class _Found:
    vector: Vector
    hits: list[Hit]


@dataclass(frozen=True, slots=True)
class Ranking:
    """One search. `end_s`: the event loop's time by which both must have answered. The indexes are held here, because
    one that starts anew takes the other's place in the replica."""

    threads: SearchThreads
    space: OpenSpace
    vectors: VectorIndex
    texts: SearchedTexts
    request: SearchRequest
    query: Query
    end_s: float

    async def order(self) -> Order:
        """Raises SearchUnavailable when nothing answered, BadSearch for what an index refuses."""
        mode = self.request.mode
        if mode == "auto":
            mode = "hybrid" if self.request.text is not None else "vector"
        # Words stand by where a vector is asked for: they are quick, and answer when the engine does not.
        vector, words = await asyncio.gather(
            _part(self._by_vector()) if mode != "lexical" else _nothing(),
            _part(self._by_words()) if self.query.text is not None else _nothing(),
        )
        if isinstance(vector, _Found) and mode == "vector":
            return Order(by_vector(vector.hits), "vector")
        if isinstance(words, list) and mode == "lexical":
            return Order(by_words(words), "lexical")
        if isinstance(vector, _Found) and isinstance(words, list):
            return Order(await self._fused(vector, words), "hybrid")
        return self._degraded(vector, words)

    def _degraded(self, vector: _Found | _PartFailed | None, words: list[Any] | _PartFailed | None) -> Order:
        failed = [part for part in (vector, words) if isinstance(part, _PartFailed)]
        for part in failed:
            metrics.search_degraded.labels(self.space.definition.context, part.part).inc()
        reason = "; ".join(part.reason for part in failed)
        if isinstance(vector, _Found):
            return Order(by_vector(vector.hits), "vector", reason or "the bundle has no text to search by")
        if isinstance(words, list):
            unapplied = "; min_score was not applied" if self.request.min_score is not None else ""
            return Order(by_words(words), "lexical", reason + unapplied)
        raise SearchUnavailable(reason or "the bundle has neither a vector nor a text in this space yet")

    async def _fused(self, vector: _Found, words: list[tuple[str, float]]) -> list[Ranked]:
        def cosine_of(key: str) -> Hit | None:
            return best_piece(self.vectors, key, vector.vector)

        return await self.threads.run(fused, vector.hits, words, cosine_of, self.request.min_score)

    async def _by_vector(self) -> _Found:
        self._refuse_unread("vectors", "vector index", self.space.replica.vectors_loaded, self.vectors.positions())
        vector = self.query.vector if self.query.vector is not None else await self._embedded()
        least = -1.0 if self.request.min_score is None else self.request.min_score
        found = self._in_time(
            "vectors", "the vector index", self.vectors.search, vector, self._wanted, self._narrow, least
        )
        return _Found(vector, await found)

    async def _embedded(self) -> Vector:
        embedder = self.space.embedder
        if self.query.text is None or self.query.itself is not None:
            # A bundle's text is no query: it may be long, and models treat the two differently.
            raise _PartFailed("vectors", "the bundle has no vector in this space yet")
        if embedder is None:
            raise _PartFailed("embedder", self.space.engine_problem)
        try:
            async with asyncio.timeout_at(self.end_s):
                return await embedder.embed(self.query.text)
        except TimeoutError:
            raise _PartFailed("embedder", "the embedding engine did not answer in time") from None
        except CtxpipeError as error:
            _LOG.warning("space %s: a query was not embedded: %s", self.space.space, error)
            raise _PartFailed("embedder", "the embedding engine fails; see the server's log") from error

    async def _by_words(self) -> list[tuple[str, float]]:
        self._refuse_unread("texts", "text index", self.space.replica.texts_loaded, self.texts.positions())
        text = self.query.text or ""
        return await self._in_time("texts", "the text index", self.texts.search, text, self._wanted, self._narrow)

    @property
    def _wanted(self) -> int:
        itself = 0 if self.query.itself is None else 1
        return min(K_MAX, max(FUSED_MIN, self.request.k + SPARE + itself))

    @property
    def _narrow(self) -> tuple[Any, ...]:
        return self.request.conditions

    def _refuse_unread(self, part: str, name: str, loaded: bool, positions: dict[int, int]) -> None:
        """An index that Kafka keeps from being read to the end is better than none."""
        replica = self.space.replica
        if not loaded and not (replica.problem and positions):
            behind = "" if replica.behind_records is None else f", {replica.behind_records:,} records behind"
            raise _PartFailed(part, f"the {name} of space {self.space.space} is being read{behind}")

    async def _in_time(self, part: str, name: str, function: Callable[..., Result], *arguments: Any) -> Result:
        try:
            async with asyncio.timeout_at(self.end_s):
                return await self.threads.run(function, *arguments)
        except TimeoutError:
            raise _PartFailed(part, f"{name} did not answer in time") from None
        except ValueError as error:
            raise BadSearch([str(error)]) from error
        except SearchUnavailable as error:
            raise _PartFailed(part, str(error)) from error
        except CtxpipeError as error:
            _LOG.warning("space %s: %s fails: %s", self.space.space, name, error)
            raise _PartFailed(part, f"{name} fails; see the server's log") from error


def best_piece(vectors: VectorIndex, key: str, query: Vector) -> Hit | None:
    """The piece of a bundle that is nearest to a query, by its current vectors; None without any."""
    import numpy

    record = vectors.vectors_of(key)
    if record is None:
        return None
    scores = numpy.frombuffer(record.vectors, "<f4").reshape(len(record.chunks), record.dimension) @ query
    best = int(scores.argmax())
    return Hit(
        key, float(scores[best]), record.chunks[best], best, record.text_hash, record.bundle_hash, record.counter
    )  # fmt: skip


async def _part(search: Coroutine[Any, Any, Result]) -> Result | _PartFailed:
    try:
        return await search
    except _PartFailed as failed:
        return failed


async def _nothing() -> None:
    return None
