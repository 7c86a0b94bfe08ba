"""The search service: a text, a vector or a bundle → the bundles nearest to it, in one space, inside a budget, always
labelled. It knows nothing of HTTP."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import msgspec

from pipeline.core import metrics
from pipeline.core.clock import Clock
from pipeline.core.errors import CtxpipeError
from pipeline.lookup.answer import NotReached
from pipeline.lookup.found_bundles import hits_of
from pipeline.lookup.keys import KEYS_MAX, is_key
from pipeline.lookup.narrowing import search_conditions, shown_hits
from pipeline.lookup.options import LookupOptions
from pipeline.lookup.positions import without_positions
from pipeline.lookup.principal import Principal
from pipeline.lookup.search_answer import SearchAnswer, SearchHit
from pipeline.lookup.search_parts import SPARE, Order, Query, Ranking, SearchThreads, SearchUnavailable
from pipeline.lookup.search_request import BadSearch, SearchRequest, request_mistakes
from pipeline.lookup.service import LookupService
from pipeline.lookup.spaces import SearchedTexts, Serving
from pipeline.stores.spaces import VectorIndex
from schemas.keys import root_key_texts
from schemas.position import position_of
from schemas.vectors import VectorRecord

if TYPE_CHECKING:
    from pipeline.stores.spaces import Vector

BUDGET_MS = 500.0
"""Of a search that names none: embedding a query takes longer than a lookup may."""
RANKING_SHARE = 0.75
"""Of the budget; the rest is for the bundles."""
BUNDLES_MS_MIN = 5.0
SEARCHING_SHARE = 0.4
"""Of the budget of a search that waits for a position; the rest may be spent on waiting."""
NOT_INDEXED = "texts or vectors of it may still be on their way to the index"


class SpaceMismatch(CtxpipeError):
    """The caller asks for a space that is not the one that answers."""


class UnknownBundle(CtxpipeError):
    """No bundle of this key is in the space."""


class _Missing(NamedTuple):
    """Positions that the bundles, or only the choice of hits, may not hold; and what is left of the budget."""

    bundles: list[NotReached]
    indexes: list[NotReached]
    left_s: float


class ServingSpaces(Protocol):
    """See pipeline.lookup.spaces.SpaceKeeper."""

    def serving(self, context: str) -> Serving | None: ...


class SearchService:
    """Safe for concurrent calls in one event loop; indexes are searched in threads. `budget_ms` is of searches that
    name none."""

    def __init__(
        self,
        lookups: LookupService,
        spaces: ServingSpaces,
        clock: Clock,
        budget_ms: float = BUDGET_MS,
        threads: SearchThreads | None = None,
    ) -> None:
        self._lookups, self._spaces, self._clock, self._budget_ms = lookups, spaces, clock, budget_ms
        self._threads = threads or SearchThreads()

    def close(self) -> None:
        self._threads.close()

    def space_of(self, context: str) -> str | None:
        """Which space answers searches of a context."""
        serving = self._spaces.serving(context)
        return None if serving is None else serving.space.space

    def budget_ms(self, request: SearchRequest) -> float:
        """How long the answer may take."""
        return self._budget_ms if request.budget_ms is None else request.budget_ms

    async def search(self, context: str, request: SearchRequest, principal: Principal | None = None) -> SearchAnswer:
        """`principal` limits what is found and shown; None: nothing does. Raises UnknownContext, BadSearch, NotAllowed,
        SpaceMismatch, UnknownBundle, SearchUnavailable, LookupUnavailable."""
        serving = self._checked(context, request)
        if principal is not None:
            marked = serving.space.definition.embedding.filters
            conditions = search_conditions(principal, serving.served.spec, marked, request.conditions)
            request = msgspec.structs.replace(request, conditions=conditions)
        # One space and one version from here to the end, whatever is promoted meanwhile (promise 6).
        serving.space.searches += 1
        serving.served.queries += 1
        try:
            return await self._search(serving, request, principal)
        except SearchUnavailable:
            metrics.search_unavailable.labels(context).inc()
            raise
        finally:
            serving.space.searches -= 1
            serving.served.queries -= 1

    def _checked(self, context: str, request: SearchRequest) -> Serving:
        served, serving = self._lookups.served(context), self._spaces.serving(context)
        if serving is None and not served.embeds:
            raise BadSearch([f"context {context} declares no embedding; it is looked up by key only"])
        if serving is None:
            mistakes = request_mistakes(request, served.spec, None, None)
        else:
            marked = serving.space.definition.embedding.filters
            mistakes = request_mistakes(request, serving.served.spec, marked, serving.space.record.dimension)
        if mistakes:
            raise BadSearch(mistakes)
        if serving is None:
            metrics.search_unavailable.labels(context).inc()
            raise SearchUnavailable(f"no embedding space of {context} serves yet; the first one is being built")
        if request.space is not None and request.space != serving.space.space:
            raise SpaceMismatch(f"space {serving.space.space} answers searches of {context}, not {request.space}")
        return serving

    async def _search(self, serving: Serving, request: SearchRequest, principal: Principal | None) -> SearchAnswer:
        budget_s = self.budget_ms(request) / 1000
        missing = _Missing([], [], budget_s)
        if request.position:
            missing = await self._wait(serving, request.position, budget_s)
        budget_s = missing.left_s
        started_s = asyncio.get_running_loop().time()
        if request.key is not None and principal is not None and principal.tenant_in(serving.served.spec) is not None:
            await self._refuse_hidden(serving, request.key, principal, budget_s * 1000)
        replica = serving.space.replica
        vectors, texts = replica.vectors, replica.texts
        query = _query(request, serving, vectors, texts)
        end_s = started_s + budget_s * RANKING_SHARE
        order = await Ranking(self._threads, serving.space, vectors, texts, request, query, end_s).order()
        hits, dropped = await self._with_bundles(serving, request, order, query, texts, started_s + budget_s, principal)
        context, as_of_us = serving.served.spec.context, replica.as_of_us
        metrics.search_answers.labels(context, order.mode).inc()
        metrics.search_dropped.labels(context).inc(dropped)
        metrics.search_moved_on.labels(context).inc(sum(hit.moved_on for hit in hits))
        return SearchAnswer(
            context=context,
            space=serving.space.space,
            spec_version=serving.served.spec.version,
            mode=order.mode,
            degraded=order.degraded,
            behind_records=replica.behind_records,
            index_age_ms=None if as_of_us is None else max(0, self._clock.now_us() - as_of_us) / 1000,
            dropped=dropped,
            hits=[_without_positions(hit, missing.bundles) for hit in hits] if missing.bundles else hits,
            with_bundles=request.bundles,
            not_reached=(*missing.bundles, *missing.indexes),
        )

    async def _wait(self, serving: Serving, tokens: Sequence[str], budget_s: float) -> _Missing:
        """First for the bundles, then for the indexes: what these hold by then includes what the bundles led to."""
        began_s, wait_s = asyncio.get_running_loop().time(), budget_s * (1 - SEARCHING_SHARE)

        def left_s(of_s: float) -> float:
            return of_s - (asyncio.get_running_loop().time() - began_s)

        bundles = await self._lookups.wait_for(serving.served, tokens, wait_s * 1000)
        index: list[NotReached] = []
        if not bundles and not await serving.space.replica.holds_now(max(0.0, left_s(wait_s))):
            index = [NotReached(position_of(token).source, token, NOT_INDEXED) for token in tokens]
        return _Missing(bundles, index, max(BUNDLES_MS_MIN / 1000, left_s(budget_s)))

    async def _refuse_hidden(self, serving: Serving, key: str, principal: Principal, budget_ms: float) -> None:
        """A bundle that may not be seen is answered as one that does not exist."""
        options = LookupOptions(principal=principal)
        found = await self._lookups.find(serving.served, [key], budget_ms, or_default=False, options=options)
        if found[0].meta is None:
            raise _unknown(key)

    async def _with_bundles(
        self,
        serving: Serving,
        request: SearchRequest,
        order: Order,
        query: Query,
        texts: SearchedTexts,
        end_s: float,
        principal: Principal | None,
    ) -> tuple[list[SearchHit], int]:
        """All bundles in one go. What is gone is left out and counted."""
        spec = serving.served.spec
        ranked = [one for one in order.ranked if one.key != query.itself and is_key(spec, one.key)]
        ranked = ranked[: min(KEYS_MAX, request.k + SPARE)]
        left_ms = max(BUNDLES_MS_MIN, (end_s - asyncio.get_running_loop().time()) * 1000)
        keys = [one.key for one in ranked]
        # Whole until it is clear whether a bundle is still the one that was found.
        whole = None if principal is None else dataclasses.replace(principal, fields={})
        options = LookupOptions(principal=whole)
        found = await self._lookups.find(serving.served, keys, left_ms, or_default=False, options=options)
        pairs = [(one, bundle) for one, bundle in zip(ranked, found, strict=True) if bundle.meta is not None]
        template = serving.space.definition.template
        hits = await self._threads.run(hits_of, pairs[: request.k], template, texts, query.text)
        if principal is not None:
            hits = shown_hits(hits, serving.served.section_sources, principal, spec.context)
        return hits, len(ranked) - len(pairs)


def _without_positions(hit: SearchHit, missing: Sequence[NotReached]) -> SearchHit:
    return msgspec.structs.replace(hit, answer=without_positions(hit.answer, missing))


def _query(request: SearchRequest, serving: Serving, vectors: VectorIndex, texts: SearchedTexts) -> Query:
    if request.key is None:
        return Query(request.text, None if request.vector is None else _unit(request.vector))
    key = root_key_texts(serving.served.spec, [request.key])[0]
    record, text = vectors.vectors_of(key), texts.text_of(key)
    if record is None and text is None:
        raise _unknown(request.key)
    return Query(text, None if record is None else _middle(record), key)


def _unknown(key: str) -> UnknownBundle:
    return UnknownBundle(f"no bundle {key!r} is in the space: it does not exist, or has no text yet")


def _unit(numbers: Sequence[float]) -> Vector:
    import numpy

    vector = numpy.array(numbers, dtype=numpy.float64)
    unit: Vector = (vector / numpy.linalg.norm(vector)).astype(numpy.float32)
    return unit


def _middle(record: VectorRecord) -> Vector:
    """Of all pieces of a bundle."""
    import numpy

    middle = numpy.frombuffer(record.vectors, "<f4").reshape(-1, record.dimension).sum(axis=0)
    length = float(numpy.linalg.norm(middle))
    unit: Vector = middle / length if length > 0 else numpy.frombuffer(record.vectors, "<f4")[: record.dimension]
    return unit
