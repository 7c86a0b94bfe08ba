"""Asking models for real, for `ctxpipe eval record` and `drift` alone: requests that lack a recording → recordings.

No case waits for a model. Cases run from what is recorded, and what they lack is collected; then all of it is asked at
once, and the cases run again, until none lacks anything. So the run that is recorded is its own replay.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from decimal import Decimal

from pipeline.evaluation.models.answers import Asked
from pipeline.evaluation.models.recordings import Recording, Recordings, kept_s, recording_of, wire_bytes
from pipeline.evaluation.models.secrets import Secrets
from pipeline.guard.config import Endpoint
from pipeline.guard.errors import HarnessError
from pipeline.guard.http_client import HttpClient
from pipeline.guard.judging import cost_of
from pipeline.guard.prices import PriceTable
from pipeline.guard.rate_limits import pause_s
from pipeline.guard.values import NOT_COUNTED, RawAnswer, Tokens
from pipeline.guard.wire import read_answer

TRIES = 3
"""Of one request that meets an outage."""
PAUSE_S, PAUSE_S_MAX = 1.0, 60.0
OUTAGES_MAX = 3
"""So many requests in a row that an endpoint did not answer: it is not asked any more."""
_PASSING = frozenset({401, 403, 404, 408, 409, 425, 429})
"""Statuses that say nothing of the model."""

Place = tuple[str, int]
"""Key and draw."""


class Collecting:
    """The Source of a round: answers from what there is, and notes what lacks, one request per case: what a flow asks
    after a request has failed, it may not ask when that is answered. `times`: how long answers take is as recorded
    there, as far as it knows their requests."""

    def __init__(
        self,
        made: Mapping[Place, Recording],
        kept: Recordings,
        problems: Mapping[str, str],
        times: Recordings | None = None,
    ) -> None:
        self._made, self._kept, self._problems = made, kept, problems
        self._times = times or Recordings()
        self.used: set[Place] = set()
        self.missing: dict[str, Asked] = {}
        """By case."""
        self.failed: dict[str, str] = {}
        """Cases that ask what could not be recorded, and why."""

    def __call__(self, asked: Asked) -> RawAnswer:
        found = self._made.get((asked.key, asked.number)) or self._kept.find(asked.key, asked.number)
        if found is not None:
            self.used.add((found.key, found.draw))
            timed = self._times.find(asked.key, asked.number)
            return found.answer if timed is None else _as_long(found.answer, timed.answer)
        if asked.key in self._problems:
            self.failed.setdefault(asked.case, self._problems[asked.key])
        else:
            self.missing.setdefault(asked.case, asked)
        raise HarnessError(f"case {asked.case}: not recorded yet")


@dataclass(frozen=True, slots=True)
class Made:
    """One answer that came, for whoever watches. `cost` None: unknown."""

    recording: Recording
    tokens: Tokens
    cost: Decimal | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LivePlan:
    """`endpoints` by name, with their keys. `draws` of each request. `failures`: outages are recorded too. `calls_max`:
    more are not made. `at_once`: on their way to one endpoint."""

    endpoints: Mapping[str, Endpoint]
    secrets: Secrets
    prices: PriceTable
    day: date
    draws: int = 1
    failures: bool = False
    calls_max: int = 5_000
    at_once: int = 8


@dataclass
class Live:
    """What was asked so far. `made` by place; `problems`: by key, why a request has no recording. `told` hears of each
    answer."""

    plan: LivePlan
    told: Callable[[Made], None] = lambda _: None
    made: dict[Place, Recording] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    calls: int = 0
    cost: Decimal = Decimal(0)
    cost_unknown: int = 0
    _in_a_row: Counter[str] = field(default_factory=Counter)

    async def ask(self, wanted: Sequence[Asked]) -> None:
        """All of it, each request once. What can't be recorded is among `problems` afterwards; what came before a
        cancel is kept."""
        places: dict[Place, Asked] = {}
        for asked in wanted:
            for draw in range(asked.number, max(self.plan.draws, asked.number + 1)):
                if (asked.key, draw) not in self.made:
                    places.setdefault((asked.key, draw), asked)
        room = {name: asyncio.Semaphore(self.plan.at_once) for name in self.plan.endpoints}
        async with HttpClient() as client, asyncio.TaskGroup() as tasks:
            for (_, draw), asked in places.items():
                tasks.create_task(self._one(client, asked, draw, room[asked.endpoint.name]))

    def recordings(self) -> list[Recording]:
        """By key and draw; draws without one before them are left out."""
        whole = [place for place in self.made if all((place[0], draw) in self.made for draw in range(place[1]))]
        return [self.made[place] for place in sorted(whole)]

    async def _one(self, client: HttpClient, asked: Asked, draw: int, room: asyncio.Semaphore) -> None:
        endpoint = self.plan.endpoints[asked.endpoint.name]
        async with room:
            try:
                self._refuse_secrets(asked)
                answer = await self._answer(client, asked, endpoint)
            except HarnessError as error:
                self.problems[asked.key] = str(error)
                return
        day = self.plan.day
        recording = recording_of(asked.body, endpoint, answer, task=asked.task, draw=draw, on=day.isoformat())
        recording = masked(recording, self.plan.secrets)
        self.made[recording.key, draw] = recording
        tokens = tokens_of(answer)
        cost = cost_of(answer, tokens, self.plan.prices.of(endpoint.price_name, day))
        if cost is None:
            self.cost_unknown += 1
        else:
            self.cost += cost
        self.told(Made(recording, tokens, cost))

    def _refuse_secrets(self, asked: Asked) -> None:
        found = [str(one) for one in self.plan.secrets.in_value(asked.body)]
        if found:
            raise HarnessError(
                f"its request to {asked.endpoint.name} holds {', '.join(found)}; nothing was sent or recorded. Keep "
                "secrets out of prompts; where it only looks like one: --not-secret TEXT"
            )

    async def _answer(self, client: HttpClient, asked: Asked, endpoint: Endpoint) -> RawAnswer:
        content, where = wire_bytes(asked.body), f"the endpoint {endpoint.name} at {endpoint.url}"
        answer = RawAnswer()
        for number in range(TRIES):
            if self._in_a_row[endpoint.name] >= OUTAGES_MAX:
                raise HarnessError(f"{where} is not asked any more: {OUTAGES_MAX} requests in a row came to nothing")
            self.calls += 1
            if self.calls > self.plan.calls_max:
                self.calls = self.plan.calls_max
                raise HarnessError(f"{where} is not asked: {self.calls} calls were made, and no more are allowed")
            answer = await client.send_content(content, endpoint, time.monotonic() + endpoint.timeout_s)
            if not outage(answer):
                self._in_a_row[endpoint.name] = 0
                return _rounded(answer)
            if number < TRIES - 1:
                await asyncio.sleep(_wait_s(answer, endpoint, number))
        if self.plan.failures:
            return _rounded(answer)
        self._in_a_row[endpoint.name] += 1
        raise HarnessError(f"{where} {outage(answer)}; nothing was recorded")


def outage(answer: RawAnswer) -> str:
    """Why the answer says nothing of the model, and would make every replay fail; "": it does."""
    if answer.failure is not None:
        return f"gave no answer ({answer.failure}: {answer.detail})"
    if answer.status in _PASSING or answer.status >= 500:
        return f"answered {answer.status}"
    return ""


def masked(recording: Recording, secrets: Secrets) -> Recording:
    """Without secrets in what came: stars stand for them, so that all else stays byte for byte."""
    answer = recording.answer
    try:
        coding, text = "utf-8", answer.body.decode()
    except UnicodeDecodeError:
        coding, text = "latin-1", answer.body.decode("latin-1")
    text, names = secrets.masked(text)
    detail, in_detail = secrets.masked(answer.detail)
    headers = {}
    for name, value in answer.headers.items():
        headers[name], in_header = secrets.masked(value)
        names += in_header
    names += in_detail
    if not names:
        return recording
    clean = replace(answer, body=text.encode(coding), detail=detail, headers=headers)
    return replace(recording, answer=clean, masked=tuple(sorted(set(names))))


def answering_models(recordings: Iterable[Recording]) -> dict[str, Counter[str]]:
    """By endpoint, which models say that they answered, and how often; it may be another one than was asked."""
    found: dict[str, Counter[str]] = {}
    for one in recordings:
        envelope = read_answer(one.answer.body) if one.answer.status == 200 else ""
        if not isinstance(envelope, str) and envelope.model:
            found.setdefault(one.endpoint, Counter())[envelope.model] += 1
    return dict(sorted(found.items()))


def tokens_of(answer: RawAnswer) -> Tokens:
    """As the endpoint counted them."""
    if answer.failure is not None or answer.status != 200:
        return NOT_COUNTED
    envelope = read_answer(answer.body)
    return NOT_COUNTED if isinstance(envelope, str) else envelope.tokens


def _as_long(answer: RawAnswer, as_this: RawAnswer) -> RawAnswer:
    return replace(answer, first_byte_s=as_this.first_byte_s, took_s=as_this.took_s)


def _rounded(answer: RawAnswer) -> RawAnswer:
    """To what a file keeps of its times: the run that is recorded and its replay see the same."""
    return replace(answer, first_byte_s=kept_s(answer.first_byte_s), took_s=kept_s(answer.took_s))


def _wait_s(answer: RawAnswer, endpoint: Endpoint, number: int) -> float:
    if answer.status == 429:
        return min(PAUSE_S_MAX, pause_s(answer.headers, datetime.now(UTC), endpoint))
    return float(min(PAUSE_S_MAX, PAUSE_S * 2**number))
