"""Opens the world of a case: its context served by production's parts, and the client that a flow has there."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import msgspec

from pipeline.client.asynchronous import AsyncClient
from pipeline.client.bundle import Bundle
from pipeline.client.errors import BadRequest
from pipeline.client.errors import NotAllowed as NotAllowedByClient
from pipeline.client.from_redis import client_error, context_info
from pipeline.client.results import ContextInfo, PastBundle
from pipeline.client.results import Found as FoundByClient
from pipeline.client.wire import read_found, read_past
from pipeline.core.clock import Clock
from pipeline.core.errors import CtxpipeError
from pipeline.evaluation.values import Case, Step
from pipeline.evaluation.world.filled import Filled, SuiteFiles, fill
from pipeline.evaluation.world.spaces import Corpora
from pipeline.evaluation.world.store import Store, served_context
from pipeline.evaluation.world.watched import Teller, WatchedLookups, WatchedSearches
from pipeline.guard.errors import HarnessError
from pipeline.lookup.history import History, NotKept
from pipeline.lookup.narrowing import NotAllowed
from pipeline.lookup.options import LookupOptions
from pipeline.lookup.principal import BUNDLES, SEARCH, Principal
from pipeline.lookup.search import SpaceMismatch, UnknownBundle
from pipeline.lookup.search_request import BadSearch, read_request
from pipeline.lookup.service import LookupService

FLOW = "the flow under test"


@dataclass(frozen=True)
class World:
    """`client` is for the flow; `service` and `searches` are what answers it, for a server over HTTP in their place.
    `seen`: what was given out so far, by "context/key", with fragments in their places; see Teller."""

    client: AsyncClient
    service: LookupService
    searches: WatchedSearches
    filled: Mapping[str, Filled]
    seen: Mapping[str, Any]


@asynccontextmanager
async def open_world(
    suite: SuiteFiles, case: Case, clock: Clock, told: Callable[[Step], None], search_budget_ms: float | None = None
) -> AsyncIterator[World]:
    """Of one case, for one event loop, by whose time and `clock` everything in it goes. `told` gets a step for every
    bundle that is asked for and for every search, in the order of their answers.

    Raises WorldError for files of the suite that can't be used.
    """
    filled = await fill(suite, case)
    conditions, teller, corpora = case.conditions, Teller(clock, told), Corpora(suite, case)
    contexts = {}
    for name, one in filled.items():
        store = Store(one, conditions, clock)
        contexts[name] = served_context(store, conditions.warm, clock, **corpora.spaces_of(one, store))
    principal = None
    if conditions.tenant is not None:
        principal = Principal(FLOW, conditions.tenant, frozenset((BUNDLES, SEARCH)))
    service = WatchedLookups(contexts, clock, teller, principal)
    corpora.serve(contexts)
    untold = LookupService(contexts, clock)
    searches = WatchedSearches(untold, corpora, clock, teller, principal, search_budget_ms)
    async with AsyncClient("", mode=_WorldMode(service, searches, principal)) as client:
        yield World(client, service, searches, filled, teller.seen)


class _WorldMode:
    """See Mode and Searching of pipeline.client: as over HTTP and straight from Redis, with the same errors."""

    def __init__(self, service: LookupService, searches: WatchedSearches, principal: Principal | None) -> None:
        self._service, self._searches, self._principal = service, searches, principal
        self._history = History(service)

    async def get(self, context: str, key: str, options: LookupOptions) -> Bundle:
        try:
            return Bundle(await self._service.get(context, key, options))
        except CtxpipeError as error:
            raise client_error(error) from error

    async def get_many(self, context: str, keys: Sequence[str], options: LookupOptions) -> list[Bundle]:
        try:
            return [Bundle(answer) for answer in await self._service.get_many(context, keys, options)]
        except CtxpipeError as error:
            raise client_error(error) from error

    async def search(self, context: str, question: dict[str, Any], budget_ms: float | None) -> FoundByClient:
        asked = question if budget_ms is None else {**question, "budget_ms": budget_ms}
        try:
            answer = await self._searches.search(context, read_request(msgspec.json.encode(asked)))
        except HarnessError:
            raise
        except BadSearch as error:
            raise BadRequest(error.mistakes) from error
        except (SpaceMismatch, UnknownBundle) as error:
            raise BadRequest([str(error)]) from error
        except NotAllowed as error:
            raise NotAllowedByClient(str(error)) from error
        except CtxpipeError as error:
            raise client_error(error) from error
        return read_found(answer.to_json())

    async def contexts(self) -> list[ContextInfo]:
        return [await context_info(served) for served in self._service.versions]

    async def by_id(self, context: str, bundle_id: str) -> PastBundle | None:
        try:
            return read_past((await self._history.find(context, bundle_id, self._principal)).past.to_json())
        except NotKept:
            return None
        except CtxpipeError as error:
            raise client_error(error) from error

    async def close(self) -> None:
        """Holds nothing open."""
