"""Asking models for real, for `ctxpipe eval record` and `drift` alone: each answer becomes a recording, without
secrets.

A case still runs in virtual time: the clock stands while a model works, and then moves by what it took. So a replay
sees the same times, and takes the same ways, as the run that was recorded.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from decimal import Decimal
from types import TracebackType

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


@dataclass(frozen=True, slots=True)
class Made:
    """One answer that came, for whoever watches. `cost` None: unknown."""

    case: str
    recording: Recording
    tokens: Tokens
    cost: Decimal | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LivePlan:
    """`endpoints` by name, with their keys. `kept`: recordings that are answered from instead, where `only_missing`.
    `draws` of each request. `failures`: outages are recorded too. `calls_max`: more are refused."""

    endpoints: Mapping[str, Endpoint]
    secrets: Secrets
    prices: PriceTable
    kept: Recordings
    only_missing: bool = False
    draws: int = 1
    failures: bool = False
    calls_max: int = 5_000


class Live:
    """A Source for cases that run in several threads. `with` it: it has a thread of its own for the connections.

    Raises HarnessError in the place of an answer that can't be recorded: an outage, a secret in the question, too many
    calls. `told` hears of each answer, in any thread.
    """

    def __init__(self, plan: LivePlan, day: date, told: Callable[[Made], None] = lambda _: None) -> None:
        self._plan, self._day, self._told = plan, day, told
        self.used: set[tuple[str, int]] = set()
        self.calls = 0
        self._places: dict[tuple[str, int], Future[Recording]] = {}
        self._lock = threading.Lock()
        self._in_a_row: Counter[str] = Counter()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="eval-live", daemon=True)
        self._client = HttpClient()

    def __enter__(self) -> Live:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._client.close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __call__(self, asked: Asked) -> RawAnswer:
        kept = self._plan.kept.find(asked.key, asked.number) if self._plan.only_missing else None
        if kept is not None:
            with self._lock:
                self.used.add((kept.key, kept.draw))
            return kept.answer
        for draw in range(self._plan.draws):
            self._recording(asked, draw)
        return self._recording(asked, asked.number).answer

    @property
    def made(self) -> list[Recording]:
        """What was recorded, by key and draw; draws without one before them are left out."""
        done = {place: one for place, one in self._places.items() if one.done() and one.exception() is None}
        whole = [place for place in done if all((place[0], draw) in done for draw in range(place[1]))]
        return [done[place].result() for place in sorted(whole)]

    def _recording(self, asked: Asked, draw: int) -> Recording:
        """One call for each place, however many cases ask for it at once."""
        place = (asked.key, draw)
        with self._lock:
            found = self._places.get(place)
            mine = found is None
            if found is None:
                found = self._places[place] = Future()
        if mine:
            try:
                found.set_result(self._made(asked, draw))
            except BaseException as error:
                found.set_exception(error)
                raise
        return found.result()

    def _made(self, asked: Asked, draw: int) -> Recording:
        endpoint = self._plan.endpoints[asked.endpoint.name]
        self._refuse_secrets(asked)
        answer = self._answer(asked, endpoint)
        recording = recording_of(asked.body, endpoint, answer, task=asked.task, draw=draw, on=self._day.isoformat())
        recording = masked(recording, self._plan.secrets)
        tokens = _tokens(answer)
        cost = cost_of(answer, tokens, self._plan.prices.of(endpoint.price or endpoint.model, self._day))
        self._told(Made(asked.case, recording, tokens, cost))
        return recording

    def _refuse_secrets(self, asked: Asked) -> None:
        found = [str(one) for one in self._plan.secrets.in_value(asked.body)]
        if found:
            raise HarnessError(
                f"case {asked.case}: its request to {asked.endpoint.name} holds {', '.join(found)}; nothing was sent "
                "or recorded. Keep secrets out of prompts"
            )

    def _answer(self, asked: Asked, endpoint: Endpoint) -> RawAnswer:
        content, where = wire_bytes(asked.body), f"case {asked.case}: the endpoint {endpoint.name} at {endpoint.url}"
        if self._in_a_row[endpoint.name] >= OUTAGES_MAX:
            raise HarnessError(f"{where} is not asked any more: {OUTAGES_MAX} requests in a row came to nothing")
        answer = RawAnswer()
        for number in range(TRIES):
            self._count(where)
            answer = _rounded(self._sent(content, endpoint))
            if not outage(answer):
                self._in_a_row[endpoint.name] = 0
                return answer
            if number < TRIES - 1:
                time.sleep(_wait_s(answer, endpoint, number))
        if self._plan.failures:
            return answer
        self._in_a_row[endpoint.name] += 1
        raise HarnessError(f"{where} {outage(answer)}; nothing was recorded")

    def _count(self, where: str) -> None:
        with self._lock:
            self.calls += 1
            if self.calls > self._plan.calls_max:
                raise HarnessError(f"{where} is not asked: {self._plan.calls_max} calls were made; see --calls-max")

    def _sent(self, content: bytes, endpoint: Endpoint) -> RawAnswer:
        until_s = time.monotonic() + endpoint.timeout_s
        return asyncio.run_coroutine_threadsafe(
            self._client.send_content(content, endpoint, until_s), self._loop
        ).result()


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


def _rounded(answer: RawAnswer) -> RawAnswer:
    """To what a file keeps of its times: the run that is recorded and its replay see the same."""
    return replace(answer, first_byte_s=kept_s(answer.first_byte_s), took_s=kept_s(answer.took_s))


def _wait_s(answer: RawAnswer, endpoint: Endpoint, number: int) -> float:
    if answer.status == 429:
        return min(PAUSE_S_MAX, pause_s(answer.headers, datetime.now(UTC), endpoint))
    return float(min(PAUSE_S_MAX, PAUSE_S * 2**number))


def _tokens(answer: RawAnswer) -> Tokens:
    if answer.failure is not None or answer.status != 200:
        return NOT_COUNTED
    envelope = read_answer(answer.body)
    return NOT_COUNTED if isinstance(envelope, str) else envelope.tokens
