"""What a case's endpoints answer, request by request: faults as the case's conditions script them, else its recording.

Flows in Python ask through `CaseClient`, in virtual time; those over HTTP through the harness, which asks `Answers`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import msgspec

from pipeline.core.clock import Clock
from pipeline.evaluation.models import faults
from pipeline.evaluation.models.recordings import Recordings, key_of
from pipeline.evaluation.values import Case, Conditions
from pipeline.guard.config import Endpoint, GuardConfig
from pipeline.guard.errors import HarnessError
from pipeline.guard.values import ModelRequest, RawAnswer
from pipeline.guard.wire import body_of, read_answer

CANT_BE_WRITTEN = (TypeError, ValueError, RecursionError, msgspec.MsgspecError)
"""What writing a request as JSON raises where it can't be one."""
_TIMED_OUT = "it did not answer in time"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One request of a case. `number`: how many equal ones it has made before; `left_s`: until whoever asks gives up.
    `task` is "" where a flow asks over HTTP: the body does not say it."""

    case: str
    task: str
    endpoint: Endpoint
    body: Mapping[str, Any]
    key: str
    number: int
    left_s: float


Source = Callable[[Asked], RawAnswer]
"""Where an answer that no fault replaces comes from. `took_s` of what it returns passes on the case's clock. Raises
HarnessError."""


class Recorded:
    """The source of every run that decides something. `used`: what was asked for, by key and draw."""

    def __init__(self, recordings: Recordings, folder: Path) -> None:
        self._recordings, self._folder = recordings, folder
        self.used: set[tuple[str, int]] = set()

    def __call__(self, asked: Asked) -> RawAnswer:
        found = self._recordings.find(asked.key, asked.number)
        if found is None:
            raise HarnessError(self._missing(asked))
        self.used.add((found.key, found.draw))
        return found.answer

    def _missing(self, asked: Asked) -> str:
        endpoint = asked.endpoint
        revision = f", revision {endpoint.revision}" if endpoint.revision else ""
        task = f"the task {asked.task}" if asked.task else "its flow"
        told = (
            f"case {asked.case}: there is no recording of what {task} asks the endpoint {endpoint.name} "
            f"(model {endpoint.model}{revision}; key {asked.key[:12]}…). "
        )
        near = self._recordings.nearest(asked.body, asked.task, endpoint.model)
        if near is not None:
            told += f"The recorded one most like it differs at {near.where}: {near.recorded} there, {near.now} now. "
        return f"{told}Record it: ctxpipe eval record {self._folder} --missing --only {asked.case}"


class Answers:
    """Of one case, in the order of its requests. `file` reads bytes of the suite by a path in it.

    `harness`: what kept it from answering; a flow that catches everything must not hide it.
    """

    def __init__(self, case: Case, source: Source, file: Callable[[str], bytes]) -> None:
        self._case, self._source, self._file = case, source, file
        self._to_endpoint: Counter[str] = Counter()
        self._alike: Counter[str] = Counter()
        self.harness: list[str] = []

    def next(
        self, body: Mapping[str, Any], endpoint: Endpoint, task: str = "", left_s: float | None = None
    ) -> RawAnswer:
        """`took_s` has the delay of the conditions in it; nothing has been waited for. The failure `timeout` means
        never. Raises HarnessError."""
        try:
            answer = self._next(body, endpoint, task, endpoint.timeout_s if left_s is None else left_s)
        except HarnessError as error:
            self.harness.append(str(error))
            raise
        delay_s = self._case.conditions.delay_ms.get(endpoint.name, 0.0) / 1000
        return replace(answer, first_byte_s=answer.first_byte_s + delay_s, took_s=answer.took_s + delay_s)

    def _next(self, body: Mapping[str, Any], endpoint: Endpoint, task: str, left_s: float) -> RawAnswer:
        if body.get("stream"):
            raise HarnessError(
                f"case {self._case.id}: it asks {endpoint.name} for a stream; recordings are whole answers: ask with "
                "stream: false"
            )
        try:
            key = key_of(body, endpoint.model, endpoint.revision)
        except CANT_BE_WRITTEN as error:
            return RawAnswer(failure="bad_request", detail=f"the request can't be written as JSON: {error}"[:300])
        script = self._case.conditions.answers.get(endpoint.name) or (faults.RECORDED,)
        name = script[min(self._to_endpoint[endpoint.name], len(script) - 1)]
        self._to_endpoint[endpoint.name] += 1
        if name.startswith(faults.RAW):
            return RawAnswer(status=200, headers=_JSON, body=self._file(name.removeprefix(faults.RAW)))
        if name != faults.RECORDED and name not in faults.OF_WHAT_IT_SAID:
            return faults.scripted(name, body, "", endpoint)
        asked = Asked(
            case=self._case.id,
            task=task,
            endpoint=endpoint,
            body=body,
            key=key,
            number=self._alike[key],
            left_s=left_s,
        )
        self._alike[key] += 1
        answer = self._source(asked)
        return answer if name == faults.RECORDED else self._changed(name, answer, asked)

    def _changed(self, name: str, answer: RawAnswer, asked: Asked) -> RawAnswer:
        said = read_answer(answer.body) if answer.failure is None and answer.status == 200 else answer.detail
        if isinstance(said, str):
            raise HarnessError(
                f"case {self._case.id}: the fault {name} changes what the model says, and what is recorded of "
                f"{asked.endpoint.name} is no chat completion: {said or answer.status}. Take a fault that needs no "
                "recording, or record a good answer"
            )
        return faults.scripted(name, asked.body, said.text, asked.endpoint)


_JSON = {"content-type": "application/json"}


class CaseClient:
    """See ModelClient: it waits on the case's clock as the HTTP client would on the machine's."""

    def __init__(self, answers: Answers, clock: Clock) -> None:
        self._answers, self._clock = answers, clock

    async def send(self, request: ModelRequest, endpoint: Endpoint, until_s: float) -> RawAnswer:
        left_s = until_s - self._clock.monotonic_s()
        answer = self._answers.next(body_of(request, endpoint), endpoint, request.task, left_s)
        if answer.failure == "bad_request":
            return answer
        if answer.failure == "timeout" or answer.took_s > left_s:
            await self._clock.sleep(max(0.0, left_s))
            return RawAnswer(failure="timeout", detail=_TIMED_OUT, took_s=max(0.0, left_s))
        if answer.took_s > 0:
            await self._clock.sleep(answer.took_s)
        return answer


def mistakes_of(conditions: Conditions, guard: GuardConfig, folder: Path) -> list[str]:
    """What of a case's conditions the suite's endpoints can't do: names of endpoints, of faults, files. `folder` is the
    suite's."""
    names = [endpoint.name for endpoint in guard.endpoints]
    opened = [name for name in conditions.breakers_open if name not in names]
    asked = [
        *(("answers", name) for name in conditions.answers),
        *(("delay_ms", name) for name in conditions.delay_ms),
        *(("breakers_open", name.partition("/")[0]) for name in opened),
    ]
    found = [
        f"conditions.{part} names the endpoint {name!r}, which guard.yaml has not{_suggestion(name, names)}"
        for part, name in asked
        if name not in names
    ]
    for endpoint, script in conditions.answers.items():
        if not script:
            found.append(f"conditions.answers.{endpoint} is empty; leave it out, or name what it does")
        found += [told for name in script if (told := _fault_mistake(endpoint, name, folder))]
    return found


def file_of(folder: Path, relative: str) -> Path:
    """Raises HarnessError for a path that leads out of the folder, or to no file."""
    path = (folder / relative).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise HarnessError(f"{relative!r} leads out of the suite; copy the file into {folder}")
    if not path.is_file():
        raise HarnessError(f"there is no file {relative!r} in {folder}")
    return path


def _fault_mistake(endpoint: str, name: str, folder: Path) -> str:
    if name.startswith(faults.RAW):
        try:
            file_of(folder, name.removeprefix(faults.RAW))
        except HarnessError as error:
            return f"conditions.answers.{endpoint}: {error}"
        return ""
    if name in faults.NAMES:
        return ""
    return (
        f"conditions.answers.{endpoint} names the fault {name!r}, which is none{_suggestion(name, faults.NAMES)}; "
        "`python -m pipeline.guard.faults --list` shows them"
    )


def _suggestion(name: str, known: list[str] | tuple[str, ...]) -> str:
    close = get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f" (there are {', '.join(known)})" if len(known) < 20 else ""
