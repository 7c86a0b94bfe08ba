"""Which dead letters a person means: by reason, time, table, bundle and state; the newest some, or all of them.

Lists are read from the newest letter backwards until they are long enough. What changes letters reads all of them once,
because an older letter of the same record goes with the newest one; it keeps numbers, not letters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pipeline.streams.decisions import OPEN, Decision, State, Verdicts, state_of
from pipeline.streams.letter_box import DeadLetterBox, Found
from pipeline.streams.letters import Heading
from pipeline.streams.offset_reader import Extent
from schemas.topics import table_topic

REASONS_MAX = 1_000


@dataclass(frozen=True, slots=True)
class LetterFilter:
    """What a letter must be like; an empty part accepts all. `reason`: in the reason or digest, in any case. `tables`:
    `schema.table`, or the end of it. `bundles`: keys that the letter names. `topics` limits connectors' letters to
    those of a context's tables. Times are milliseconds since 1970, `until_ms` not included."""

    reason: str = ""
    tables: frozenset[str] = frozenset()
    bundles: frozenset[str] = frozenset()
    since_ms: int | None = None
    until_ms: int | None = None
    states: frozenset[str] = OPEN
    topics: frozenset[str] | None = None

    @property
    def narrows(self) -> bool:
        """Whether a person said anything but which states."""
        return bool(self.reason or self.tables or self.bundles) or (self.since_ms, self.until_ms) != (None, None)

    def accepts(self, found: Found, state: State, keys: Sequence[str]) -> bool:
        """`keys`: the bundles that are known to be affected."""
        letter, wanted = found.letter, self.reason.casefold()
        if state not in self.states or (wanted and wanted not in f"{letter.reason}\n{letter.digest}".casefold()):
            return False
        if not self.covers(letter) or (self.tables and not any(_of_table(letter, table) for table in self.tables)):
            return False
        if self.bundles and self.bundles.isdisjoint(keys):
            return False
        return not (
            (self.since_ms is not None and found.failed_at_ms < self.since_ms)
            or (self.until_ms is not None and found.failed_at_ms >= self.until_ms)
        )

    def covers(self, letter: Heading) -> bool:
        return self.topics is None or letter.topic in self.topics


@dataclass(frozen=True, slots=True)
class Listed:
    """A letter, what was decided of it last, and what it is now."""

    found: Found
    state: State
    decision: Decision | None
    keys: Sequence[str] = ()


KeysOf = Callable[[Heading], Sequence[str]]
"""The bundles that a letter is known to affect, without asking any store."""


def written_keys(letter: Heading) -> Sequence[str]:
    """As its writer knew them."""
    return letter.bundle_keys


async def newest(
    box: DeadLetterBox,
    verdicts: Verdicts,
    wanted: LetterFilter,
    limit: int,
    before: int | None = None,
    keys_of: KeysOf = written_keys,
) -> tuple[list[Listed], bool]:
    """The newest `limit` letters with lower numbers than `before`, newest first, and whether there are more. Raises as
    the box."""
    extent = await box.extent()
    if extent is None:
        return [], False
    listed: list[Listed] = []
    seen: set[tuple[str, int | None, int | str | None]] = set()
    async for part in box.newest_first(await _start(box, wanted, extent), extent.end):
        for found in part:
            repeated = found.letter.identity in seen
            seen.add(found.letter.identity)
            if before is not None and found.number >= before:
                continue
            one = _listed(found, verdicts, repeated, keys_of)
            if wanted.accepts(found, one.state, one.keys):
                listed.append(one)
                if len(listed) > limit:
                    return listed[:limit], True
    return listed, False


@dataclass(slots=True)
class Choice:
    """Letters that a person chose. `repeats`: the number of a letter → older ones that it stands for. `reasons`: how
    many of each, the first REASONS_MAX apart."""

    numbers: list[int] = field(default_factory=list)
    repeats: dict[int, list[int]] = field(default_factory=dict)
    attempts: dict[int, int] = field(default_factory=dict)
    """Redrives that failed before."""
    refused: dict[int, str] = field(default_factory=dict)
    """Of connectors: why they can't be redriven."""
    reasons: Counter[str] = field(default_factory=Counter)
    bundles: set[str] = field(default_factory=set)
    missing: list[int] = field(default_factory=list)
    newest_ms: int = 0
    """When the newest of them was written."""

    def with_repeats(self, numbers: Sequence[int]) -> list[int]:
        return [*numbers, *(older for number in numbers for older in self.repeats.get(number, ()))]


async def choose(
    box: DeadLetterBox,
    verdicts: Verdicts,
    wanted: LetterFilter,
    numbers: Sequence[int] | None = None,
    keys_of: KeysOf = written_keys,
) -> Choice:
    """Those with these numbers in whatever state, or all that `wanted` accepts. Of a letter that a newer one stands
    for, the newer one is chosen. Raises as the box."""
    choice = Choice()
    extent = await box.extent()
    if extent is None:
        choice.missing = sorted(set(numbers or ()))
        return choice
    groups: dict[int, list[int]] = {}
    latest: dict[int, Listed | None] = {}
    named = set(numbers or ())
    async for part in box.oldest_first(extent.first, extent.end):
        for found in part:
            identity = hash(found.letter.identity)
            groups.setdefault(identity, []).append(found.number)
            one = _listed(found, verdicts, False, keys_of)
            chosen = found.number in named if numbers is not None else wanted.accepts(found, one.state, one.keys)
            kept = latest.get(identity) is not None and numbers is not None
            latest[identity] = one if chosen or kept else None
            named.discard(found.number)
    choice.missing = sorted(named)
    for identity, listed in latest.items():
        if listed is not None:
            _take(choice, listed, groups[identity])
    choice.numbers.sort()
    return choice


async def by_reason(
    box: DeadLetterBox, verdicts: Verdicts, wanted: LetterFilter, keys_of: KeysOf = written_keys
) -> list[ReasonGroup]:
    """All letters that `wanted` accepts, together where they failed alike, the most frequent first."""
    extent = await box.extent()
    groups: dict[tuple[str, str], ReasonGroup] = {}
    seen: set[int] = set()
    if extent is None:
        return []
    async for part in box.newest_first(await _start(box, wanted, extent), extent.end):
        for found in part:
            identity = hash(found.letter.identity)
            one = _listed(found, verdicts, identity in seen, keys_of)
            seen.add(identity)
            if wanted.accepts(found, one.state, one.keys):
                letter = found.letter
                kind = (letter.topic, letter.digest or letter.reason)
                if kind not in groups and len(groups) >= REASONS_MAX:
                    kind = ("", "")
                groups.setdefault(kind, ReasonGroup(letter.topic, letter.digest, letter.reason)).add(one)
    return sorted(groups.values(), key=lambda group: -group.count)


@dataclass(slots=True)
class ReasonGroup:
    """Letters of one topic that failed at one place. `newest` and `oldest` are numbers."""

    topic: str
    digest: str
    reason: str
    """Of the newest."""
    count: int = 0
    newest: int = 0
    oldest: int = 0
    newest_ms: int = 0
    oldest_ms: int = 0
    bundles: set[int] = field(default_factory=set)
    """Hashes."""

    def add(self, one: Listed) -> None:
        """From the newest to the oldest."""
        found = one.found
        if not self.count:
            self.newest, self.newest_ms = found.number, found.failed_at_ms
        self.oldest, self.oldest_ms = found.number, found.failed_at_ms
        self.count += 1
        self.bundles.update(map(hash, one.keys))


def _take(choice: Choice, listed: Listed, group: list[int]) -> None:
    found = listed.found
    choice.numbers.append(found.number)
    if len(group) > 1:
        choice.repeats[found.number] = group[:-1]
    if listed.decision is not None and listed.decision.attempts:
        choice.attempts[found.number] = listed.decision.attempts
    if found.letter.by_connector:
        choice.refused[found.number] = found.letter.refusal
    choice.newest_ms = max(choice.newest_ms, found.written_ms)
    choice.bundles.update(listed.keys)
    reason = found.letter.reason
    if reason in choice.reasons or len(choice.reasons) < REASONS_MAX:
        choice.reasons[reason] += 1


def _listed(found: Found, verdicts: Verdicts, repeated: bool, keys_of: KeysOf) -> Listed:
    decision = verdicts.of(found.number, found.written_ms)
    state = state_of(decision)
    return Listed(found, "repeated" if repeated and state in OPEN else state, decision, keys_of(found.letter))


async def _start(box: DeadLetterBox, wanted: LetterFilter, extent: Extent) -> int:
    """Nothing older can be accepted. A letter is written after it failed, never before."""
    if wanted.since_ms is None:
        return extent.first
    offset = await box.offset_at(wanted.since_ms)
    return extent.end if offset is None else max(extent.first, offset)


def _of_table(letter: Heading, table: str) -> bool:
    if letter.table and (letter.table == table or letter.table.endswith(f".{table}")):
        return True
    topic = table_topic("", table)[1:]
    return letter.topic == topic or letter.topic.endswith(f".{topic}")
