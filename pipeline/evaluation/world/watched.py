"""Lookups and searches of a case, told: what was asked, how it was answered, and which bytes were given out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import msgspec

from pipeline.core.clock import Clock
from pipeline.core.errors import CtxpipeError, Poison
from pipeline.evaluation.values import Step
from pipeline.lookup.answer import Answer
from pipeline.lookup.options import NO_OPTIONS, LookupOptions
from pipeline.lookup.principal import Principal
from pipeline.lookup.search import SearchService, ServingSpaces
from pipeline.lookup.search_answer import SearchAnswer
from pipeline.lookup.search_parts import SearchThreads
from pipeline.lookup.search_request import SearchRequest
from pipeline.lookup.served import ServedContext
from pipeline.lookup.service import Found, LookupService, UnknownContext
from pipeline.text import decode_bundle

Told = Callable[[Step], None]
What = Literal["context", "search"]


class Teller:
    """Makes steps of a case, and keeps what it has seen: `seen`, by "context/key". The same key answered with other
    bytes, narrowed to fewer fields for one, is kept beside it as "context/key#2"."""

    def __init__(self, clock: Clock, told: Told) -> None:
        self.seen: dict[str, Any] = {}
        self._bytes: dict[str, bytes] = {}
        self._clock, self._told, self._began_s = clock, told, clock.monotonic_s()

    def now_s(self) -> float:
        return self._clock.monotonic_s()

    def answered(self, asked: Mapping[str, Any], answer: Answer, started_s: float) -> None:
        """One step of a bundle."""
        self._see(answer)
        came = {
            "status": answer.status,
            "rung": answer.rung,
            "left_out": sorted(answer.left_out),
            "age_ms": dict(sorted(answer.age_ms.items())),
            "hash": answer.hash,
        }
        self._tell("context", answer.context, {"key": answer.key, **asked}, came, started_s)

    def searched(self, asked: Mapping[str, Any], answer: SearchAnswer, started_s: float) -> None:
        if answer.with_bundles:
            for hit in answer.hits:
                self._see(hit.answer)
        came = {
            "status": "degraded" if answer.degraded else "answered",
            "mode": answer.mode,
            "degraded": answer.degraded,
            "hits": [hit.key for hit in answer.hits],
        }
        self._tell("search", answer.context, asked, came, started_s)

    def failed(self, what: What, context: str, asked: Mapping[str, Any], error: CtxpipeError, started_s: float) -> None:
        """No answer; the flow gets the error."""
        came = {"status": "error", "error": type(error).__name__, "reason": str(error)}
        self._tell(what, context, asked, came, started_s)

    def _see(self, answer: Answer) -> None:
        if answer.bundle is None:
            return
        name, number = f"{answer.context}/{answer.key}", 1
        place = name
        while place in self._bytes and self._bytes[place] != answer.bundle:
            number += 1
            place = f"{name}#{number}"
        if place not in self._bytes:
            self._bytes[place] = answer.bundle
            self.seen[place] = _decoded(answer.bundle)

    def _tell(self, what: What, name: str, asked: Mapping[str, Any], came: Mapping[str, Any], started_s: float) -> None:
        at_ms = round((started_s - self._began_s) * 1000, 3)
        took_ms = round((self.now_s() - started_s) * 1000, 3)
        self._told(Step(what=what, name=name, asked=asked, came=came, at_ms=at_ms, took_ms=took_ms))


class WatchedLookups(LookupService):
    """As production's. `principal` asks wherever nobody else is named. Each key is a step of its own."""

    def __init__(
        self, contexts: Mapping[str, ServedContext], clock: Clock, teller: Teller, principal: Principal | None
    ) -> None:
        super().__init__(contexts, clock)
        self._teller, self._principal = teller, principal

    async def get(self, context: str, key: str, options: LookupOptions = NO_OPTIONS, looked: bool = False) -> Answer:
        options = self._as_asked(options)
        served = self._contexts.get(context)
        if not options.plain or (served is not None and not served.is_plain):
            return await super().get(context, key, options, looked)  # by way of get_many
        started_s, asked = self._teller.now_s(), _asked(options)
        try:
            answer = await super().get(context, key, options, looked)
        except CtxpipeError as error:
            self._teller.failed("context", context, {"key": key, **asked}, error, started_s)
            raise
        self._teller.answered(asked, answer, started_s)
        return answer

    async def get_many(self, context: str, keys: Sequence[str], options: LookupOptions = NO_OPTIONS) -> list[Answer]:
        started_s = self._teller.now_s()
        try:
            return await super().get_many(context, keys, options)  # by way of find
        except UnknownContext as error:
            for key in keys:
                self._teller.failed("context", context, {"key": key, **_asked(options)}, error, started_s)
            raise

    async def find(
        self,
        served: ServedContext,
        keys: Sequence[str],
        budget_ms: float | None = None,
        or_default: bool = True,
        options: LookupOptions = NO_OPTIONS,
        checked: bool = False,
    ) -> list[Found]:
        options = self._as_asked(options)
        started_s, asked = self._teller.now_s(), _asked(options)
        try:
            found = await super().find(served, keys, budget_ms, or_default, options, checked)
        except CtxpipeError as error:
            for key in keys:
                self._teller.failed("context", served.spec.context, {"key": key, **asked}, error, started_s)
            raise
        for one in found:
            self._teller.answered(asked, one.answer, started_s)
        return found

    def _as_asked(self, options: LookupOptions) -> LookupOptions:
        if self._principal is None or options.principal is not None:
            return options
        return msgspec.structs.replace(options, principal=self._principal)


class InlineThreads(SearchThreads):
    """In the event loop itself, whose clock stands still meanwhile: a search takes no virtual time."""

    def __init__(self) -> None:
        """Has no threads."""

    async def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)

    def close(self) -> None:
        """Nothing to do."""


class WatchedSearches(SearchService):
    """As production's; `lookups` fetch the hits' bundles, which are no steps of their own."""

    def __init__(
        self,
        lookups: LookupService,
        spaces: ServingSpaces,
        clock: Clock,
        teller: Teller,
        principal: Principal | None,
        budget_ms: float | None = None,
    ) -> None:
        budget = {} if budget_ms is None else {"budget_ms": budget_ms}
        super().__init__(lookups, spaces, clock, threads=InlineThreads(), **budget)
        self._teller, self._principal = teller, principal

    async def search(self, context: str, request: SearchRequest, principal: Principal | None = None) -> SearchAnswer:
        started_s, asked = self._teller.now_s(), _question(request)
        try:
            answer = await super().search(context, request, principal or self._principal)
        except CtxpipeError as error:
            self._teller.failed("search", context, asked, error, started_s)
            raise
        self._teller.searched(asked, answer, started_s)
        return answer


def _decoded(bundle: bytes) -> Any:
    try:
        return decode_bundle(bundle)
    except Poison:
        return bundle.decode("utf-8", "replace")  # the flow was given the bytes, whatever it makes of them


def _asked(options: LookupOptions) -> dict[str, Any]:
    """What was asked for beside the key, as JSON."""
    names = ("budget_ms", "max_age_ms", "token_budget")
    asked: dict[str, Any] = {name: value for name in names if (value := getattr(options, name)) is not None}
    if options.positions:
        asked["position"] = list(options.positions)
    for name, paths in (("sections", options.sections), ("fields", options.fields)):
        if paths is not None:
            asked[name] = list(paths)
    if options.principal is not None and options.principal.tenant is not None:
        asked["tenant"] = options.principal.tenant
    return asked


def _question(request: SearchRequest) -> dict[str, Any]:
    asked: dict[str, Any] = {"k": request.k, "mode": request.mode}
    for name in ("text", "key", "min_score", "space", "budget_ms"):
        value = getattr(request, name)
        if value is not None:
            asked[name] = value
    if request.vector is not None:
        asked["vector"] = list(request.vector)
    if request.conditions:
        asked["filter"] = [[one.field, one.comparison, one.value] for one in request.conditions]
    return asked
