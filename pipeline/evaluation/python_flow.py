"""One case run in this process: the pipeline alone, or a Python flow in its world, on a loop of virtual time.

case → world, models, tools → flow → what was observed
"""

from __future__ import annotations

import asyncio
import copy
import inspect
import re
import signal
import sys
import sysconfig
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from pipeline.core import metrics
from pipeline.core.clock import Clock
from pipeline.evaluation.digests import canonical, plain
from pipeline.evaluation.errors import SuiteError
from pipeline.evaluation.models.answers import Source
from pipeline.evaluation.models.guarding import CaseGuard, guard_of
from pipeline.evaluation.suite import FLOWLESS, Suite, import_object
from pipeline.evaluation.values import Case, Given, Observed, Step, Tools
from pipeline.evaluation.virtual_time import NeverEnds, TakesTooLong, VirtualClock, VirtualLoop, run_virtually
from pipeline.evaluation.world import open_world, replayed, retrieved
from pipeline.guard.errors import HarnessError

_ADDRESS = re.compile(r"\b0x[0-9a-fA-F]+\b")
_RAISED_CHARACTERS_MAX = 1000
_REPEAT_S = 1.0
_NOT_THE_FLOWS = (
    str(Path(metrics.__file__).parents[1]),
    *{sysconfig.get_path(one) for one in ("stdlib", "purelib", "platlib")},
)


@dataclass
class Seen:
    """What is known of a case while it runs, kept when it breaks off."""

    steps: list[Step] = field(default_factory=list)
    harness: list[str] = field(default_factory=list)
    output: Any = None
    raised: str = ""
    seen: Mapping[str, Any] = field(default_factory=dict)
    digests: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    hits: list[tuple[str, float]] = field(default_factory=list)
    counted: Mapping[str, float] = field(default_factory=dict)
    took_ms: float = 0.0
    guard: CaseGuard | None = None

    def observed(self) -> Observed:
        results = self.guard.results if self.guard is not None else []
        costs = [one.cost for one in results]
        tokens = [one for result in results for one in (result.tokens.input, result.tokens.output) if one is not None]
        return Observed(
            output=self.output,
            raised=self.raised,
            steps=tuple(self.steps),
            seen=self.seen,
            digests=self.digests,
            hits=tuple(self.hits),
            counted=self.counted,
            took_ms=self.took_ms,
            cost=None if None in costs else float(sum(cost for cost in costs if cost is not None)),
            tokens=sum(tokens) if tokens else None,
        )


def observe(suite: Suite, case: Case, source: Source | None = None) -> Observed:
    """Runs one case to its end, or to its limit of real time. Raises HarnessError where the case could not be run as it
    is written, whatever the flow made of that."""
    seen = Seen()
    try:
        with _limited(suite.manifest.case_s_max), _no_connections(seen):
            run_virtually(lambda loop: _run(suite, case, loop, seen, source), suite.manifest.case_s_max)
    except NeverEnds as error:
        seen.raised = f"it never ends: {error}"
    except TakesTooLong:
        seen.raised = f"it took more than {suite.manifest.case_s_max:g} s of real time"
    except SystemExit as error:
        seen.raised = f"it ended the process: SystemExit({error.code!r})"
    harness = [*seen.harness, *(seen.guard.harness if seen.guard is not None else ())]
    if harness:
        raise HarnessError("\n".join(dict.fromkeys(harness)))
    return seen.observed()


async def _run(suite: Suite, case: Case, loop: VirtualLoop, seen: Seen, source: Source | None) -> None:
    clock = VirtualClock(loop, suite.manifest.now_us)
    if case.kind in FLOWLESS:
        await _run_pipeline(suite, case, clock, seen)
    else:
        before = _counters(case)
        await _run_flow(suite, case, clock, seen, source)
        seen.counted = {
            name: value - before.get(name, 0.0) for name, value in _counters(case).items() if value != before.get(name)
        }


async def _run_pipeline(suite: Suite, case: Case, clock: Clock, seen: Seen) -> None:
    try:
        if case.kind == "replay":
            seen.digests = await replayed(suite, case)
        else:
            seen.hits = list(await retrieved(suite, case, clock))
    except HarnessError:
        raise
    except Exception as error:  # noqa: BLE001 - the pipeline is under test here: what it raises is a finding
        seen.raised = told_of(error)


async def _run_flow(suite: Suite, case: Case, clock: Clock, seen: Seen, source: Source | None) -> None:
    flow = suite.flow
    if flow is None or flow.python is None:
        raise SuiteError([f"case {case.id}: the suite names no python flow"])
    function = _imported(flow.python)
    async with AsyncExitStack() as stack:
        world = await stack.enter_async_context(open_world(suite, case, clock, seen.steps.append))
        seen.guard = guard_of(suite, case, clock, seen.steps.append, source)
        stack.push_async_callback(seen.guard.close)
        tools = ToldTools(tools_of(suite, case), clock, seen)
        given = Given(context=world.client, guard=seen.guard, tools=tools, clock=clock)
        began_s = clock.monotonic_s()
        try:
            output = function(copy.deepcopy(case.input), given)
            seen.output = _written(await output if inspect.isawaitable(output) else output)
        except HarnessError as error:
            seen.harness.append(str(error))
        except Exception as error:  # noqa: BLE001 - the flow under test: whatever it raises is a finding, not our end
            seen.raised = told_of(error)
        finally:
            seen.took_ms = round((clock.monotonic_s() - began_s) * 1000, 6)
            seen.seen = dict(world.seen)


class ToldTools:
    """A case's tools; every call is a step. What a tool raises goes on to the flow."""

    def __init__(self, tools: Tools | None, clock: Clock, seen: Seen) -> None:
        self._tools, self._clock, self._seen = tools, clock, seen
        self._began_s = clock.monotonic_s()

    async def call(self, name: str, arguments: Mapping[str, Any]) -> Any:
        """Raises HarnessError where the suite names no tools."""
        if self._tools is None:
            told = f"the flow calls the tool {name!r}, and suite.yaml names no tools under flow:"
            self._seen.harness.append(told)
            raise HarnessError(told)
        began_s = self._clock.monotonic_s()
        came: dict[str, Any] = {}
        asked = _as_json(dict(arguments))  # before the tool can change them
        try:
            value = await self._tools.call(name, arguments)
            came["value"] = _as_json(value)
            return value
        except asyncio.CancelledError:
            came["raised"] = "cancelled"
            raise
        except Exception as error:
            came["raised"] = told_of(error)
            raise
        finally:
            self._seen.steps.append(
                Step(
                    what="tool",
                    name=name,
                    asked=asked if isinstance(asked, dict) else {"arguments": asked},
                    came=came,
                    at_ms=round((began_s - self._began_s) * 1000, 3),
                    took_ms=round((self._clock.monotonic_s() - began_s) * 1000, 3),
                )
            )


def tools_of(suite: Suite, case: Case) -> Tools | None:
    """Made anew for each case. Raises SuiteError where the suite's function fails."""
    if suite.flow is None or suite.flow.tools is None:
        return None
    try:
        made: Tools = import_object(suite.flow.tools)(copy.deepcopy(case.input))
    except Exception as error:  # noqa: BLE001 - the suite's own code
        raise SuiteError([f"case {case.id}: {suite.flow.tools} failed: {told_of(error)}"]) from None
    if not hasattr(made, "call"):
        told = f"{suite.flow.tools} gave a {type(made).__name__}, which has no method 'call(name, arguments)'"
        raise SuiteError([f"case {case.id}: {told}"])
    return made


def told_of(error: BaseException) -> str:
    """Its type, text and the last line of the flow's own code on the way there; the same in every run."""
    every = traceback.extract_tb(error.__traceback__)
    frames = [one for one in every if not one.filename.startswith(_NOT_THE_FLOWS)] or every
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    text = _ADDRESS.sub("0x…", f"{type(error).__name__}: {error}")
    return f"{text[:_RAISED_CHARACTERS_MAX]}{where}"


def _imported(name: str) -> Any:
    """Raises SuiteError."""
    try:
        return import_object(name)
    except ValueError as error:
        raise SuiteError([f"flow.python: {error}"]) from None


def _written(output: Any) -> Any:
    try:
        canonical(output)
        return plain(output)
    except ValueError as error:
        raise ValueError(f"the flow's output is no JSON: {error}") from None


def _as_json(value: Any) -> Any:
    try:
        canonical(value)
        return plain(value)
    except ValueError as error:
        return f"no JSON: {error}"


def _counters(case: Case) -> dict[str, float]:
    """Series of the metrics that the case's checks look at, by name and labels."""
    names = {one.value["metric"] for one in case.expect if one.check == "counted"}
    if not names:
        return {}
    found = {}
    for family in metrics.REGISTRY.restricted_registry(names).collect():
        for sample in family.samples:
            labels = ",".join(f'{key}="{value}"' for key, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}"] = sample.value
    return found


@contextmanager
def _limited(real_s: float) -> Iterator[None]:
    """Ends code that never lets go of the processor, too, where the platform can."""
    if not hasattr(signal, "SIGALRM") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(number: int, frame: FrameType | None) -> None:
        raise TakesTooLong

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, real_s + _REPEAT_S, _REPEAT_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


_watching: list[Callable[[str], None]] = []
_hooked: list[bool] = []


@contextmanager
def _no_connections(seen: Seen) -> Iterator[None]:
    """A flow that asks the network gets an error, and so does the run: nothing live may decide about a suite."""
    if not _hooked:
        sys.addaudithook(_audit)  # for the life of the process; it looks at nothing while no case runs
        _hooked.append(True)
    told: list[str] = []
    _watching.append(told.append)
    try:
        yield
    finally:
        _watching.pop()
        seen.harness += told


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _watching and event in ("socket.connect", "socket.getaddrinfo"):
        address = arguments[1] if event == "socket.connect" else arguments[0]
        told = (
            f"the flow opened a connection to {address!r}: a case uses what it is given (context, guard, tools), "
            "never the network. Hand the flow its clients, or test it as an http flow"
        )
        _watching[-1](told)
        raise HarnessError(told)
