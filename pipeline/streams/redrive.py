"""Dead letters after the fact: their records are applied after all, or their bundles' texts looked at again.

Nothing is written to a source's topic: there the record would become the newest of its key, and compaction would drop
the one that really is. Versions of rows decide between a record and newer ones that are applied meanwhile, by whomever.
What became of each letter is noted beside the letters when its group is done, so that an end in between repeats a group
and loses nothing, and nothing that fails again is set aside once more.
"""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from pipeline.core.clock import Clock, SystemClock
from pipeline.core.errors import Retryable
from pipeline.report import BatchReport, DeadLetter
from pipeline.stores.store import ShardChanged
from pipeline.streams.backoff import Backoff
from pipeline.streams.decisions import Decision, Outcome, ranges_of
from pipeline.streams.handler import Stages
from pipeline.streams.letter_choice import Choice
from pipeline.streams.letters import Letter, decode_heading, decode_letter, original_record
from pipeline.streams.publisher import key_text
from pipeline.streams.redrive_texts import TextRequests
from schemas.record import Record

GROUP_RECORDS_MAX = 200
GROUP_BYTES_MAX = 16 << 20
PATIENCE_S = 30.0
INCOMPLETE = "incomplete-row"
"""The digest of a record that needs the row before it, which may be another letter."""

Result = TypeVar("Result")
Numbered = tuple[int, Record]
Show = Callable[[int], None]


class Box(Protocol):
    """What is needed of DeadLetterBox."""

    def whole(self, numbers: Sequence[int]) -> AsyncIterator[tuple[int, bytes]]: ...

    async def record(self, topic: str, partition: int, offset: int) -> Any | None: ...

    async def decide(self, decisions: Sequence[Decision], replication_factor: int) -> None: ...


@dataclass(slots=True)
class Redriven:
    """What became of letters, by number. `applied`: the row is as the record says. `overtaken`: it was newer already.
    `asked`: texts of which nobody knows yet. `failed`: number → why, the letter waits on. `refused`: number → why
    nothing was tried."""

    applied: list[int] = field(default_factory=list)
    overtaken: list[int] = field(default_factory=list)
    asked: list[int] = field(default_factory=list)
    failed: dict[int, str] = field(default_factory=dict)
    refused: dict[int, str] = field(default_factory=dict)

    @property
    def count(self) -> int:
        return len(self.applied) + len(self.overtaken) + len(self.asked) + len(self.failed) + len(self.refused)

    def add(self, other: Redriven) -> None:
        self.applied += other.applied
        self.overtaken += other.overtaken
        self.asked += other.asked
        self.failed |= other.failed
        self.refused |= other.refused


class Redrive:
    """Applies the letters of one context again. `by` is noted as who did it. `texts` None: a context without."""

    def __init__(
        self,
        box: Box,
        flow: Stages,
        texts: TextRequests | None = None,
        *,
        by: str = "",
        replication_factor: int = 1,
        clock: Clock | None = None,
    ) -> None:
        self._box, self._flow, self._texts = box, flow, texts
        self._by, self._replicas, self._clock = by, replication_factor, clock or SystemClock()

    async def run(self, choice: Choice, show: Show = lambda done: None) -> Redriven:
        """In the order of the letters, some at a time; those that lacked their row are tried a second time when all
        others are done. `show` is told how many are. Raises Retryable when a store or Kafka stays away: what was done
        until then is noted, and running it again goes on."""
        result = Redriven()
        incomplete: list[int] = []
        for numbers, again in ((choice.numbers, False), (incomplete, True)):
            async for group in self._groups(numbers):
                found, later = await self._group(group, again)
                incomplete += later
                await self._note(choice, found)
                result.add(found)
                show(result.count)
        handled = {*result.applied, *result.overtaken, *result.asked, *result.failed, *result.refused}
        result.refused |= {one: "expired meanwhile" for one in choice.numbers if one not in handled}
        return result

    async def _groups(self, numbers: Sequence[int]) -> AsyncIterator[list[tuple[int, bytes]]]:
        """Whole letters, no more in memory than a group. Read in turn with what is done to them: the box has one place
        of reading, and truncated records are read through it as well."""
        for start in range(0, len(numbers), GROUP_RECORDS_MAX):
            group: list[tuple[int, bytes]] = []
            size = 0
            wanted = list(numbers[start : start + GROUP_RECORDS_MAX])
            while wanted:
                async for number, value in self._box.whole(wanted):
                    group.append((number, value))
                    size += len(value)
                    if size > GROUP_BYTES_MAX:
                        break
                if not group:
                    break
                wanted = [number for number in wanted if number > group[-1][0]] if size > GROUP_BYTES_MAX else []
                yield group
                group, size = [], 0

    async def _group(self, group: Sequence[tuple[int, bytes]], again: bool) -> tuple[Redriven, list[int]]:
        """And the numbers of those to be tried when the others are done."""
        result = Redriven()
        records: list[Numbered] = []
        texts: dict[int, Letter] = {}
        for number, value in group:
            heading = decode_heading(value)
            if heading.by_connector:
                result.refused[number] = heading.refusal
                continue
            letter = decode_letter(value)
            if self._texts is not None and self._texts.concern(letter):
                texts[number] = letter
            elif heading.by_embedding:
                result.refused[number] = (
                    f"a text of another version ({heading.topic}), whose workers look at their bundles themselves; "
                    "discard this letter"
                )
            elif (record := await self._persistently(lambda one=letter: self._original(one))) is not None:  # type: ignore[misc]
                records.append((number, record))
            else:
                result.failed[number] = f"too big to be kept, and {heading.place} is gone from Kafka"
        records.sort(key=lambda one: (one[1].topic, one[1].partition, one[1].offset))
        later = [] if not records else await self._apply(records, result, again)
        await self._look_again(texts, result)
        return result, later

    async def _apply(self, records: Sequence[Numbered], result: Redriven, again: bool) -> list[int]:
        report, reasons = await self._process(records)
        good: list[Numbered] = []
        later: list[int] = []
        for number, record in records:
            letter = reasons.get((record.topic, record.partition, record.offset))
            if letter is None:
                good.append((number, record))
            elif letter.digest == INCOMPLETE and not again:
                later.append(number)
            else:
                result.failed[number] = letter.reason
        await self._tell_apart(good, report, result)
        return later

    async def _tell_apart(self, good: Sequence[Numbered], report: BatchReport, result: Redriven) -> None:
        """Which of the records changed their row, where the report only says how many did not: a part at a time comes
        once more, which changes nothing."""
        numbers = [number for number, _ in good]
        if not report.stale and report.events >= len(good):
            result.applied += numbers
        elif report.stale >= report.events:
            result.overtaken += numbers
        elif len(good) == 1:
            result.applied += numbers
        else:
            middle = len(good) // 2
            for part in (good[:middle], good[middle:]):
                if part:
                    repeated, _ = await self._process(part)
                    await self._tell_apart(part, repeated, result)

    async def _process(self, records: Sequence[Numbered]) -> tuple[BatchReport, dict[tuple[str, int, int], DeadLetter]]:
        async def work() -> BatchReport:
            report = await self._flow.process([record for _, record in records])
            for chunk in report.fan_out:
                report.texts_wanted |= (await self._flow.rebuild(chunk)).texts_wanted
            return report

        report = await self._persistently(work)
        if report.texts_wanted and self._texts is not None and self._texts.embeds:
            await self._texts.want(report.texts_wanted)
        failed = {(one.record.topic, one.record.partition, one.record.offset): one for one in report.dead_letters}
        return report, failed

    async def _look_again(self, letters: dict[int, Letter], result: Redriven) -> None:
        if not letters or self._texts is None:
            return
        if not self._texts.embeds:
            result.refused |= dict.fromkeys(letters, "the context embeds nothing any more; nobody waits for this text")
            return
        keys = {number: _bundle_keys(letter) for number, letter in letters.items()}
        spaces = {key: self._texts.space_of(letters[number]) for number, found in keys.items() for key in found}
        answers = await self._texts.again(spaces)
        for number, found in keys.items():
            told = [answers[key] for key in found]
            if None in told:
                result.asked.append(number)
            elif any(told):
                result.failed[number] = "; ".join(answer for answer in told if answer)
            else:
                result.applied.append(number)

    async def _note(self, choice: Choice, found: Redriven) -> None:
        # Not before the letters: a decision counts for those that were written before it.
        at_ms = max(self._clock.now_us() // 1000, choice.newest_ms)

        def decision(outcome: Outcome, numbers: Sequence[int], why: str = "", attempts: int = 0) -> Decision:
            ranges = ranges_of(choice.with_repeats(numbers))
            return Decision(
                outcome=outcome, numbers=ranges, at_ms=at_ms, by=self._by, why=why, attempts=attempts
            )  # fmt: skip

        decisions = [decision("applied", found.applied)] if found.applied else []
        decisions += [decision("overtaken", found.overtaken)] if found.overtaken else []
        decisions += [decision("asked", found.asked)] if found.asked else []
        for number, why in found.failed.items():
            decisions.append(decision("failed", [number], why, choice.attempts.get(number, 0) + 1))
        await self._persistently(lambda: self._box.decide(decisions, self._replicas))

    async def _original(self, letter: Letter) -> Record | None:
        """The record as it was; a truncated one from its own topic, as long as that still has it."""
        if not letter.truncated:
            return original_record(letter)
        found = await self._box.record(letter.topic, letter.partition, letter.offset)
        if found is None:
            return None
        return Record(letter.topic, letter.partition, letter.offset, found.key, found.value, 0, tuple(found.headers))

    async def _persistently(self, work: Callable[[], Awaitable[Result]]) -> Result:
        """Waits for what is away, PATIENCE_S at most."""
        pauses, ends_s = Backoff(0.1, 2.0), self._clock.monotonic_s() + PATIENCE_S
        while True:
            try:
                return await work()
            except ShardChanged:
                raise
            except Retryable:
                if self._clock.monotonic_s() >= ends_s:
                    raise
                await self._clock.sleep(pauses.next_s())


def _bundle_keys(letter: Letter) -> list[str]:
    """Of a record of requests or texts, also of a truncated one."""
    if letter.bundle_keys or letter.key is None:
        return letter.bundle_keys
    return [key_text(base64.b64decode(letter.key))]
