"""`ctxpipe verify`: what the sources say against what lookups would answer, key by key.

Changes go on while it looks, so a first difference is only a suspicion. A suspect is read again: source, then (after
everything up to that moment has been applied) the store, then the source once more. Where the source stood still
and the store still says otherwise, the difference counts (suspects.py). Where nothing tells what has been applied,
suspects are read again until they agree or have differed for as long as somebody is patient.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from pipeline.core.clock import Clock
from pipeline.ops.applied import Applied, Target, wait_until_applied
from pipeline.ops.difference import ABSENT, Difference, differences
from pipeline.ops.oracle import Oracle
from pipeline.ops.reader import TableReader
from pipeline.ops.suspects import Suspects

KEYS_MAX = 500
AGAIN_KEYS = 4_000
SLICE_KEYS = 20_000
REPORTED_KEYS_MAX = 500


class Answers(Protocol):
    """The store's side: answers as a lookup would give them."""

    async def bundles(self, keys: Sequence[str]) -> list[bytes | None]:
        """Whole bundles, linked sections in place; None where there is none."""

    async def applied(self) -> Applied:
        """How far each partition has been applied."""

    def stored_keys(self) -> AsyncIterator[list[str]]:
        """Keys of all stored bundles, in chunks; a key may come twice, and deleted ones may be among them."""


@dataclass(frozen=True)
class Settings:
    """`sample` 0 checks everything; `topics` are the topics with their number of partitions (0: unknown), of each
    source whose heartbeats say up to when everything has been applied. `patience_s` is how long a difference must last
    where that does not settle it: sources without heartbeats, values whose time to live is over."""

    sample: int = 0
    keys: tuple[str, ...] = ()
    seed: int = 0
    wait_s: float = 60.0
    patience_s: float = 0.0
    topics: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


@dataclass
class Verification:
    """`found` holds the first mismatching keys with their differences; `unsettled` keys kept changing all the time;
    `unconfirmed` is the part of `mismatches` that was seen once only, because so much else was wrong; `version` is
    the verified version of the spec."""

    verified: int = 0
    mismatches: int = 0
    missing: int = 0
    extra: int = 0
    unsettled: int = 0
    unconfirmed: int = 0
    absent: int = 0
    found: list[tuple[str, list[Difference]]] = field(default_factory=list)
    version: int = 0


Progress = Callable[[str, int], None]
"""Called with what is being done and the number of keys so far."""


class Verifier:
    """One check of one context; make a new one for the next."""

    def __init__(
        self,
        oracle: Oracle,
        answers: Answers,
        readers: Mapping[str, TableReader],
        clock: Clock,
        settings: Settings,
        progress: Progress = lambda what, count: None,
    ) -> None:
        self._oracle, self._answers, self._readers = oracle, answers, readers
        self._clock, self._settings, self._progress = clock, settings, progress
        self._result = Verification()

    async def run(self) -> Verification:
        """Raises EnvironmentProblem when in-flight changes do not arrive or a side is away."""
        await self._wait()
        suspects: dict[str, None] = {}
        async for expected in self._expected():
            suspects.update(dict.fromkeys(await self._suspects(expected)))
            self._progress("comparing", self._result.verified)
        async for key in self._surplus():
            if key not in suspects:
                suspects[key] = None
                self._result.verified += 1
        await self._confirm(list(suspects))
        return self._result

    async def _wait(self) -> None:
        """Until everything that the sources have committed by now has been applied."""
        for name, topics in self._settings.topics.items():
            target = Target(name, await self._readers[name].clock_us(), topics)
            await wait_until_applied(self._answers.applied, target, self._clock, self._settings.wait_s)

    async def _expected(self) -> AsyncIterator[dict[str, bytes | None]]:
        """Chunks of keys to compare with what the sources say."""
        if not self._settings.keys and not self._settings.sample:
            async for bundles in self._oracle.all_bundles():
                yield dict(bundles)
            return
        keys = self._settings.keys or await self._sampled(self._oracle.keys())
        for chunk in _chunks(list(dict.fromkeys(keys))):
            bundles = await self._oracle.bundles(chunk)
            yield {key: bundles.get(key) for key in chunk}

    async def _sampled(self, chunks: AsyncIterator[list[str]]) -> list[str]:
        """Every key with the same probability, in one pass."""
        chooser, size, seen = random.Random(self._settings.seed), self._settings.sample, 0
        chosen: list[str] = []
        async for keys in chunks:
            for key in keys:
                seen += 1
                if len(chosen) < size:
                    chosen.append(key)
                elif (place := chooser.randrange(seen)) < size:
                    chosen[place] = key
            self._progress("sampling", seen)
        return chosen

    async def _suspects(self, expected: Mapping[str, bytes | None]) -> list[str]:
        keys = list(expected)
        suspects = []
        for key, stored in zip(keys, await self._stored(keys), strict=True):
            if expected[key] is None and stored is None:
                self._result.absent += 1
                continue
            self._result.verified += 1
            if differences(expected[key], stored):
                suspects.append(key)
        return suspects

    async def _stored(self, keys: Sequence[str]) -> list[bytes | None]:
        stored: list[bytes | None] = []
        for chunk in _chunks(keys):
            stored += await self._answers.bundles(chunk)
        return stored

    async def _surplus(self) -> AsyncIterator[str]:
        """Stored keys that no root row stands behind."""
        if self._settings.keys:
            return
        chunks = self._answers.stored_keys()
        if self._settings.sample:
            chunks = _once(await self._sampled(chunks))
        count = 0
        async for names in chunks:
            for chunk in _chunks(names):
                existing = await self._oracle.existing(chunk)
                unknown = [key for key in dict.fromkeys(chunk) if key not in existing]
                for key, stored in zip(unknown, await self._stored(unknown), strict=True):
                    if stored is not None:
                        yield key
                count += len(chunk)
                self._progress("looking for surplus bundles", count)

    async def _confirm(self, suspects: list[str]) -> None:
        """Reads suspects again. Where most of a slice turn out wrong, the rest are counted without another look."""
        for start in range(0, len(suspects), SLICE_KEYS):
            part = suspects[start : start + SLICE_KEYS]
            lasting = await self._confirm_slice(part)
            if lasting > len(part) / 2 and start + len(part) < len(suspects):
                self._result.unconfirmed = len(suspects) - start - len(part)
                self._result.mismatches += self._result.unconfirmed
                return

    async def _confirm_slice(self, keys: list[str]) -> int:
        """The number of lasting mismatches."""
        suspects = Suspects(keys, self._settings.patience_s, self._clock.monotonic_s())
        pause_s: float | None = 0.0
        while pause_s is not None:
            if pause_s:
                await self._clock.sleep(pause_s)
            for chunk in _chunks(suspects.pending, AGAIN_KEYS):
                await self._read_again(chunk, suspects)
                self._progress("reading differences again", len(suspects.lasting))
            pause_s = suspects.pause_s(self._clock.monotonic_s())
        self._count(suspects.lasting, suspects.moving)
        return len(suspects.lasting)

    def _count(self, found: Mapping[str, list[Difference]], moving: Sequence[str]) -> None:
        self._result.unsettled += len(moving)
        self._result.mismatches += len(found)
        for key, lasting in found.items():
            self._result.missing += lasting[0].path == "" and lasting[0].stored == ABSENT
            self._result.extra += lasting[0].path == "" and lasting[0].source == ABSENT
            if len(self._result.found) < REPORTED_KEYS_MAX:
                self._result.found.append((key, lasting))

    async def _read_again(self, keys: Sequence[str], suspects: Suspects) -> None:
        unasked = suspects.unasked(keys)
        if unasked:
            self._oracle.forget()
            suspects.begin(unasked, await self._oracle.bundles(unasked), self._clock.monotonic_s())
        await self._wait()
        stored = await self._stored(keys)
        self._oracle.forget()
        source = await self._oracle.bundles(keys)
        now_s = self._clock.monotonic_s()
        for key, answer in zip(keys, stored, strict=True):
            suspects.judge(key, answer, source.get(key), now_s)


def _chunks(keys: Sequence[str], size: int = KEYS_MAX) -> Iterable[Sequence[str]]:
    return (keys[start : start + size] for start in range(0, len(keys), size))


async def _once(keys: list[str]) -> AsyncIterator[list[str]]:
    yield keys
