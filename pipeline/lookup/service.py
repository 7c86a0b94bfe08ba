"""The lookup service: key → answer, inside a budget and always labelled. It knows nothing of HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal
from weakref import WeakKeyDictionary

import msgspec

from pipeline.core.clock import Clock
from pipeline.core.errors import CtxpipeError, Retryable
from pipeline.lookup.answer import Answer, EmbeddingLabel, NotReached
from pipeline.lookup.bundle_ids import id_of, shape_of
from pipeline.lookup.gathering import Gathering
from pipeline.lookup.keys import check_key, check_keys
from pipeline.lookup.labels import Composed, Unread, answer_of, default_answer, embedding_label
from pipeline.lookup.ladder import Ladder, Read
from pipeline.lookup.options import NO_OPTIONS, BadOptions, LookupOptions, path_mistakes
from pipeline.lookup.positions import read_positions, wait_for, without_positions
from pipeline.lookup.served import ServedContext
from pipeline.lookup.shaping import shaped
from pipeline.stores.spaces import VectorState
from pipeline.stores.store import Fetched
from schemas.bundle import Meta
from schemas.context import ContextSpec

READY_S = 1.0
LEFT_S_MIN = 0.001
"""For the bundles, after a wait that took longer than it should."""
SPACE_KEPT_S = 0.5
"""So long after a promotion, answers may still be labelled by the space before it, which they name."""
AT_ONCE_MAX = 64
"""In one turn of the event loop. Lookups that are answered from memory never wait for anything, and so would give no
turn to others: to what tells of changes, for one."""
STABLE_LABELS = ("current", "none")
"""They stay true of a bundle as long as it stays and its space serves."""


NOTHING_FETCHED = Fetched(None, {})


class UnknownContext(CtxpipeError):
    """No context of this name is served here."""


class LookupUnavailable(Retryable):
    """The store did not answer inside the budget and the spec has no default bundle."""


@dataclass(frozen=True, slots=True)
class Found:
    """An answer, and what was stored of the bundle in it; None where the bundle is missing or is the default. `key` is
    the text that bundles are named by."""

    answer: Answer
    key: str
    fetched: Fetched | None = None

    @property
    def meta(self) -> Meta | None:
        stored = None if self.fetched is None else self.fetched.bundle
        return None if stored is None else stored.meta


class _Query(msgspec.Struct, frozen=True, gc=False):
    """`wanted` are the keys as the store has them; `until_s` is of the event loop's clock."""

    served: ServedContext
    keys: Sequence[str]
    wanted: Sequence[str]
    options: LookupOptions
    budget_ms: float
    until_s: float
    or_default: bool


class LookupService:
    """Safe for concurrent calls in one event loop. `budget_ms` replaces every spec's own, e.g. for a person waiting."""

    def __init__(self, contexts: Mapping[str, ServedContext], clock: Clock, budget_ms: float | None = None) -> None:
        self._contexts, self._clock, self._budget_ms = dict(contexts), clock, budget_ms
        self._at_once = 0
        self._gatherings: WeakKeyDictionary[Ladder, Gathering] = WeakKeyDictionary()

    @property
    def specs(self) -> list[ContextSpec]:
        return [context.spec for context in self._contexts.values()]

    @property
    def versions(self) -> list[ServedContext]:
        """Of every context the version that answers now."""
        return list(self._contexts.values())

    async def get(self, context: str, key: str, options: LookupOptions = NO_OPTIONS, looked: bool = False) -> Answer:
        """`looked`: `at_hand` has just been asked in vain. Raises UnknownContext, MalformedKey, BadOptions,
        LookupUnavailable."""
        if options.plain:
            if not looked:
                if self._at_once >= AT_ONCE_MAX:
                    await asyncio.sleep(0)
                answer = self.at_hand(context, key, options.budget_ms)
                if answer is not None:
                    return answer
            served = self.served(context)
            if served.is_plain:
                return await self._get_together(served, key, options)
        return (await self.get_many(context, [key], options))[0]

    async def get_many(self, context: str, keys: Sequence[str], options: LookupOptions = NO_OPTIONS) -> list[Answer]:
        """One answer per key, in order; at most KEYS_MAX keys. Raises as `get`; one bad key refuses them all."""
        return [found.answer for found in await self.find(self.served(context), keys, options=options)]

    def served(self, context: str) -> ServedContext:
        """The version that answers now. Raises UnknownContext."""
        served = self._contexts.get(context)
        if served is None:
            raise UnknownContext(f"no context {context!r} is served here")
        return served

    def budget_ms(self, context: str, options: LookupOptions) -> float:
        """How long the answer may take. Raises UnknownContext."""
        return self._budget(self.served(context), options.budget_ms)

    async def find(
        self,
        served: ServedContext,
        keys: Sequence[str],
        budget_ms: float | None = None,
        or_default: bool = True,
        options: LookupOptions = NO_OPTIONS,
        checked: bool = False,
    ) -> list[Found]:
        """As get_many, all from this version, whatever takes over meanwhile. `budget_ms` goes before that of the
        options. Unless `or_default`, LookupUnavailable is raised also where the spec has a default bundle.
        `checked`: the keys have been."""
        mistakes = path_mistakes(options, served.spec) if options.selects else []
        if mistakes:
            raise BadOptions(mistakes)
        if not checked:
            check_keys(served.spec, keys)
        budget_ms = self._budget(served, budget_ms or options.budget_ms)
        until_s = asyncio.get_running_loop().time() + budget_ms / 1000
        wanted = served.names_of(keys)
        query = _Query(served, keys, wanted, options, budget_ms, until_s, or_default)
        served.queries += 1
        try:
            found = await (self._find_after(query) if options.positions else self._find(query))
        finally:
            served.queries -= 1
        return [_shown(served, one, options) for one in found]

    def use(self, context: str, served: ServedContext) -> None:
        """From the next query on, this version answers."""
        self._contexts[context] = served

    async def warm(self, served: ServedContext) -> None:
        """Before `use`: raises Retryable when its store is away."""
        await served.ladder.store.refresh(self._clock.monotonic_s())

    async def wait_for(self, served: ServedContext, tokens: Sequence[str], budget_ms: float) -> list[NotReached]:
        """Waits until the positions have been reached, for most of the budget at most; gives those that were not.
        Raises BadOptions."""
        positions = read_positions(tokens, served.spec.context, served.sources)
        return await wait_for(positions, served.watch, lambda: self.warm(served), budget_ms / 1000)

    def _budget(self, served: ServedContext, asked_ms: float | None) -> float:
        if asked_ms is not None:
            return asked_ms
        return self._budget_ms if self._budget_ms is not None else served.spec.serving.budget_ms

    def at_hand(self, context: str, key: str, budget_ms: float | None = None) -> Answer | None:
        """As `get` with plain options, where it needs to wait for nothing: what the near cache has of a key that was
        asked for before, if nothing else is to be asked or labelled; and what was last known, while the store is passed
        over. Most lookups are like that, and this takes half the time of the way that all others go. None: ask `get`.
        Raises nothing."""
        served = self._contexts.get(context)
        wanted = None if served is None else served.plain_keys.get(key)
        if served is None or wanted is None:
            return None
        clock = self._clock
        now_us = clock.now_us()
        read = served.ladder.near(wanted, served.spec.serving.max_age_ms, clock.monotonic_s())
        if read is None:
            read = served.ladder.passing_over(wanted, self._budget(served, budget_ms) / 1000, now_us)
            if read is None:
                return None
        self._note_at_once()
        return answer_of(served, key, read, now_us, NO_OPTIONS)[0]

    async def _get_together(self, served: ServedContext, key: str, options: LookupOptions) -> Answer:
        """From the rungs below the near cache, with others that ask at the same time."""
        wanted = served.plain_keys.get(key)
        if wanted is None:
            check_key(served.spec, key)
            wanted = served.names_of([key])[0]
            served.remember_key(key, wanted)
            answer = self.at_hand(served.spec.context, key, options.budget_ms)
            if answer is not None:
                return answer
        budget_ms = self._budget(served, options.budget_ms)
        until_s = asyncio.get_running_loop().time() + budget_ms / 1000
        gathering = self._gatherings.get(served.ladder)
        if gathering is None:
            gathering = self._gatherings[served.ladder] = Gathering(served.ladder, self._clock)
        served.queries += 1
        try:
            read, error = await gathering.read(wanted, budget_ms, until_s)
        finally:
            served.queries -= 1
        now_us = self._clock.now_us()
        if read is None:
            return self._default(
                _Query(served, [key], [wanted], options, budget_ms, until_s, True), key, now_us, error
            ).answer
        return answer_of(served, key, read, now_us, options)[0]

    async def _find_after(self, query: _Query) -> list[Found]:
        """Bundles that hold the positions; those that may not are never called fresh."""
        loop = asyncio.get_running_loop()
        left_ms = (query.until_s - loop.time()) * 1000
        missing = await self.wait_for(query.served, query.options.positions, left_ms)
        later = msgspec.structs.replace(query, until_s=max(query.until_s, loop.time() + LEFT_S_MIN))
        found = await self._find(later)
        if not missing:
            return found
        return [replace(one, answer=without_positions(one.answer, missing)) for one in found]

    async def _find(self, query: _Query) -> list[Found]:
        served, options = query.served, query.options
        reads: list[Read | None] = [None] * len(query.wanted)
        if not options.positions:  # the near cache is confirmed now and then; the store holds what it holds
            limit_ms = served.spec.serving.max_age_ms if options.max_age_ms is None else options.max_age_ms
            now_s = self._clock.monotonic_s()
            reads = [served.ladder.near(key, limit_ms, now_s) for key in query.wanted]
        if None in reads or served.embeds:
            states, error = await self._read(query, reads)
        else:
            states, error = {}, None
            self._note_at_once()
            if self._at_once >= AT_ONCE_MAX:
                await asyncio.sleep(0)
        now_us = self._clock.now_us()
        found = []
        for number, (key, read) in enumerate(zip(query.keys, reads, strict=True)):
            if read is None:
                found.append(self._default(query, key, now_us, error))
                continue
            answer, meta = answer_of(served, key, read, now_us, options)
            if served.embeds:
                label = _label_of(read, meta, served.space, states.get(number, "known"))
                answer = msgspec.structs.replace(answer, embedding=label)
            found.append(Found(answer, query.wanted[number], None if meta is None else read.fetched))
        return found

    def _note_at_once(self) -> None:
        """Of so many lookups in one turn, those that come after them wait until the next one has begun."""
        self._at_once += 1
        if self._at_once == 1:
            asyncio.get_running_loop().call_soon(self._turned)

    def _turned(self) -> None:
        self._at_once = 0

    async def _read(
        self, query: _Query, reads: list[Read | None]
    ) -> tuple[dict[int, VectorState | Unread | None], Exception | None]:
        """Fills in the reads that are not there, and gives the vectors' states of those whose label is not known, by
        their number; at the same time. The error is why the store gave nothing."""
        served = query.served
        away = [number for number, read in enumerate(reads) if read is None]
        asked: list[int] = []
        if served.embeds:
            space_known = not self._space_is_old(served)
            asked = [n for n, read in enumerate(reads) if not space_known or _known_label(read, served.space) is None]
        if not asked:
            return {}, await self._fill(query, reads, away) if away else None
        keys = [query.wanted[number] for number in asked]
        if not away:
            return dict(zip(asked, await self._states(served, keys, query.until_s), strict=True)), None
        error, states = await asyncio.gather(self._fill(query, reads, away), self._states(served, keys, query.until_s))
        return dict(zip(asked, states, strict=True)), error

    async def _fill(self, query: _Query, reads: list[Read | None], away: Sequence[int]) -> Exception | None:
        keys = [query.wanted[number] for number in away]
        found, error = await query.served.ladder.read(
            keys, query.until_s, self._clock.now_us(), self._clock.monotonic_s(), exact=bool(query.options.positions)
        )
        for number, read in zip(away, found, strict=True):
            reads[number] = read
        return error

    async def _states(
        self, served: ServedContext, keys: Sequence[str], until_s: float
    ) -> Sequence[VectorState | Unread | None]:
        """Beside the bundles, which are worth more: what cannot be read is labelled so."""
        assert served.states is not None
        try:
            async with asyncio.timeout_at(until_s):
                await self._refresh_space(served)
                if served.space is None:
                    return [None] * len(keys)
                return await served.states.read_states(served.space, keys)
        except (TimeoutError, Retryable):
            return ["unread"] * len(keys)

    def _default(self, query: _Query, key: str, now_us: int, error: Exception | None) -> Found:
        """Promise 5: the default bundle, labelled, where the spec has one. Raises LookupUnavailable."""
        served = query.served
        assert error is not None
        if served.spec.serving.default is None or not query.or_default:
            if not isinstance(error, TimeoutError | Retryable):
                raise error
            late = f"the store did not answer within {query.budget_ms:g} ms"
            raise LookupUnavailable(late if isinstance(error, TimeoutError) else str(error)) from error
        served.ladder.count_defaults(1)
        answer = default_answer(served, key, now_us)
        if served.embeds:
            answer = msgspec.structs.replace(answer, embedding=EmbeddingLabel(space=served.space, state="unknown"))
        return Found(answer, key)

    async def ready(self) -> dict[str, str]:
        """Context → why its lookups cannot be answered; empty when ready."""
        problems = {}
        for name, served in list(self._contexts.items()):
            served.queries += 1
            try:
                async with asyncio.timeout(READY_S):
                    await served.reader.read_applied()
            except TimeoutError:
                problems[name] = f"the store did not answer within {READY_S:g} s"
            except CtxpipeError as error:
                problems[name] = str(error)
            finally:
                served.queries -= 1
        return problems

    async def _refresh_space(self, served: ServedContext) -> None:
        if served.spaces is not None and self._space_is_old(served):
            now_s = self._clock.monotonic_s()
            served.space = await served.spaces.serving()
            served.space_at_s = now_s

    def _space_is_old(self, served: ServedContext) -> bool:
        return served.space_at_s is None or self._clock.monotonic_s() - served.space_at_s > SPACE_KEPT_S


def _shown(served: ServedContext, found: Found, options: LookupOptions) -> Found:
    """What of it the caller may see and has asked for, with the id that leads back to just that."""
    if options is NO_OPTIONS and served.spec.history is None:
        return found
    shape = shape_of(found.answer.context, options)
    answer = shaped(found.answer, shape, served, found.fetched or NOTHING_FETCHED)
    if served.spec.history is not None and found.fetched is not None:
        answer = msgspec.structs.replace(answer, id=id_of(found.key, found.fetched, options, answer))
    return replace(found, answer=answer)


def _known_label(read: Read | None, space: str | None) -> EmbeddingLabel | None:
    """One that was found before and is still true."""
    memo = None if read is None or read.near is None else read.near.memo
    label = memo.embedding if isinstance(memo, Composed) else None
    return label if label is not None and label.space == space else None


def _label_of(
    read: Read, meta: Meta | None, space: str | None, state: VectorState | Literal["unread", "known"] | None
) -> EmbeddingLabel:
    if state == "known":
        known = _known_label(read, space)
        assert known is not None
        return known if meta is not None else EmbeddingLabel(space=space, state="none")
    label = embedding_label(meta, space, state)
    if read.near is not None and isinstance(read.near.memo, Composed) and label.state in STABLE_LABELS:
        read.near.memo.embedding = label
    return label
