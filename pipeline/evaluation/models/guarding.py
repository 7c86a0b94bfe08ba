"""The guard that a case's flow is given: the production ladder over recordings and scripted faults, and it tells."""

from __future__ import annotations

import asyncio
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from pipeline.core.clock import Clock
from pipeline.evaluation.digests import digest_of
from pipeline.evaluation.models.answers import Answers, CaseClient, Recorded, Source, file_of, mistakes_of
from pipeline.evaluation.models.recordings import PATTERN, Recordings, read_recordings
from pipeline.evaluation.values import Case, Step
from pipeline.guard.config import Endpoint, GuardConfig, Route
from pipeline.guard.errors import HarnessError
from pipeline.guard.escalations import MemoryEscalations
from pipeline.guard.guard import Function, Guard
from pipeline.guard.prices import PriceTable, read_prices
from pipeline.guard.values import Attempt, ModelRequest, Result

CHANCE = 0.5
"""What a case's guard gets where production throws dice: pauses before retries, jitter of breakers."""
NOBODY = "nobody"
"""The endpoint of suites without a guard.yaml."""


class Suite(Protocol):
    """What of a suite models need. `guard` None: it has none. `manifest` has `recordings`, and `flow.functions`."""

    @property
    def folder(self) -> Path: ...

    @property
    def guard(self) -> GuardConfig | None: ...

    @property
    def manifest(self) -> Any: ...


class CaseGuard(Guard):
    """Of one case. `escalations` keeps what was put to people, `results` what was answered, in this order; `harness`
    has what kept it from answering, which the flow may have caught."""

    def __init__(
        self,
        config: GuardConfig,
        case: Case,
        answers: Answers,
        functions: Mapping[str, Function],
        clock: Clock,
        told: Callable[[Step], None],
    ) -> None:
        self.escalations = MemoryEscalations()
        self.results: list[Result] = []
        self.answers = answers
        self._told, self._began_s, self._case_clock = told, clock.monotonic_s(), clock
        super().__init__(
            config,
            CaseClient(answers, clock),
            self.escalations,
            functions,
            prices=_prices(),
            clock=clock,
            chance=lambda: CHANCE,
        )
        for name in case.conditions.breakers_open:
            self._open(name)

    @property
    def harness(self) -> Sequence[str]:
        return self.answers.harness

    async def call(self, request: ModelRequest) -> Result:
        began_s = self._case_clock.monotonic_s()
        try:
            result = await super().call(request)
        except asyncio.CancelledError:
            self._tell(request, began_s, {"rung": "", "reason": "cancelled"})
            raise
        self.results.append(result)
        self._tell(request, began_s, came_of(result))
        return result

    def _tell(self, request: ModelRequest, began_s: float, came: Mapping[str, Any]) -> None:
        step = Step(
            what="model",
            name=request.task,
            asked=asked_of(request),
            came=came,
            at_ms=_ms(began_s - self._began_s),
            took_ms=_ms(self._case_clock.monotonic_s() - began_s),
        )
        self._told(step)

    def _open(self, name: str) -> None:
        """As so many failures in a row would."""
        endpoint, _, output = name.partition("/")
        breaker = self._gates.output_breaker(endpoint, output) if output else self._gates.breaker(endpoint)
        for _ in range(self._config.breaker.failures_max):
            permit = breaker.admit()
            if permit is not None:
                breaker.failure(permit)


def guard_of(
    suite: Suite, case: Case, clock: Clock, told: Callable[[Step], None], source: Source | None = None
) -> CaseGuard:
    """Call it when the case begins. `told` hears of each call when it has ended. `source` None: recordings, and never a
    live call. Raises HarnessError for what the suite's guard can't do."""
    config = suite.guard or _NO_MODELS
    mistakes = mistakes_of(case.conditions, config, suite.folder)
    if mistakes:
        raise HarnessError("\n".join(f"case {case.id}: {mistake}" for mistake in mistakes))
    return CaseGuard(config, case, answers_of(suite, case, source), functions_of(suite), clock, told)


def answers_of(suite: Suite, case: Case, source: Source | None = None) -> Answers:
    """For flows that ask models over HTTP: the harness's server gives each request to `Answers.next`."""
    if suite.guard is None:
        source = _no_models(case, suite.folder)
    return Answers(case, source or recorded(suite), lambda relative: file_of(suite.folder, relative).read_bytes())


def recorded(suite: Suite) -> Recorded:
    """The source that answers from the suite's recordings. Raises RecordingError."""
    return Recorded(recordings_of(suite), suite.folder)


def recordings_of(suite: Suite) -> Recordings:
    """Read once for as long as the files stay as they are. Raises RecordingError."""
    folder = recordings_folder(suite)
    states = tuple((str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in sorted(folder.rglob(PATTERN)))
    return _recordings(folder, states)


def recordings_folder(suite: Suite) -> Path:
    return suite.folder / (suite.manifest.recordings or "recordings")


def functions_of(suite: Suite) -> Mapping[str, Function]:
    """The application's functions by task, as the manifest names them. Raises HarnessError with all that are none."""
    named: Mapping[str, str] = getattr(suite.manifest.flow, "functions", None) or {}
    found, mistakes = {}, []
    for task, reference in named.items():
        try:
            function = pkgutil.resolve_name(reference)
        except (ImportError, AttributeError, ValueError) as error:
            mistakes.append(f"flow.functions.{task}: {reference!r} can't be imported: {error}; write module:function")
            continue
        if callable(function):
            found[task] = function
        else:
            mistakes.append(f"flow.functions.{task}: {reference!r} is a {type(function).__name__}, not a function")
    if mistakes:
        raise HarnessError("\n".join(mistakes))
    return found


def asked_of(request: ModelRequest) -> dict[str, Any]:
    """Of a call, for the trace: enough to see that two asked the same."""
    asked: dict[str, Any] = {"output": request.output.name, "messages": len(request.messages)}
    try:
        asked["sha256"] = digest_of([request.messages, request.parameters])[:16]
    except ValueError:
        asked["sha256"] = ""
    if request.tools:
        asked["tools"] = [tool.name for tool in request.tools]
    return asked


def came_of(result: Result) -> dict[str, Any]:
    """Of an answer, for the trace. Details of attempts are words of libraries, and stay out."""
    came: dict[str, Any] = {
        "rung": result.rung,
        "reason": result.reason,
        "endpoint": result.endpoint,
        "model": result.model,
        "attempts": [_attempt(one) for one in result.attempts],
        "cost": None if result.cost is None else float(result.cost),
        "tokens": {"input": result.tokens.input, "output": result.tokens.output},
    }
    if result.repaired:
        came["repaired"] = result.repaired
    if result.tool_calls:
        came["tool_calls"] = [{"name": call.name, "arguments": dict(call.arguments)} for call in result.tool_calls]
    if result.escalation:
        came["escalation"] = result.escalation
    return came


def _attempt(attempt: Attempt) -> dict[str, Any]:
    told: dict[str, Any] = {"rung": attempt.rung, "endpoint": attempt.endpoint, "reason": attempt.reason}
    if not attempt.asked:
        told["asked"] = False
    if attempt.status not in (0, 200):
        told["status"] = attempt.status
    if attempt.invalid:
        told["invalid"] = attempt.invalid
    if attempt.repair_turn:
        told["repair_turn"] = True
    return told


_NO_MODELS = GuardConfig(
    endpoints=(Endpoint(name=NOBODY, url="http://127.0.0.1:9/v1", model=NOBODY),),
    routes={"*": Route(primary=NOBODY, retries_max=0)},
)


def _no_models(case: Case, folder: Path) -> Source:
    def source(_: object) -> Any:
        raise HarnessError(
            f"case {case.id}: its flow asks a model, and the suite names no endpoints; write {folder / 'guard.yaml'} "
            "with endpoints and routes, and `guard: guard.yaml` into suite.yaml"
        )

    return source


@lru_cache(maxsize=4)
def _recordings(folder: Path, states: tuple[tuple[str, int, int], ...]) -> Recordings:
    return read_recordings(folder)


@lru_cache(maxsize=1)
def _prices() -> PriceTable:
    return read_prices()


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
