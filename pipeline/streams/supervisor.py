"""Keeps worker processes running: starts them, starts them again with backoff, ends them in order."""

from __future__ import annotations

import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import msgspec

from pipeline.core.health import Health
from pipeline.streams.backoff import Backoff
from pipeline.streams.child_reports import ReportingChild

logger = logging.getLogger(__name__)

GIVE_UP_CODES = (2, 3)
"""A configuration or environment that no restart mends; see core.errors."""
HEALTHY_AFTER_S = 60.0
STOP_TIMEOUT_S = 24.0
"""Of all of them together; less than Kubernetes waits (30 s) before it kills what is left."""
MARGIN_S = 2.0
"""A supervisor waits so much longer than its processes may take, which end by themselves before."""
LOOK_EVERY_S = 0.1


class Child(Protocol):
    """What the supervisor needs of subprocess.Popen; see also Telling."""

    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None: ...

    def send_signal(self, number: int) -> None: ...

    def kill(self) -> None: ...


@runtime_checkable
class Telling(Protocol):
    """A child that tells how it is; see pipeline.streams.child_reports."""

    def problems(self, probe: str, now_s: float) -> Mapping[str, str]: ...


@dataclass(slots=True)
class Place:
    """One worker that should run: its name, its process, and when to start it again. Without a `vital` one the others
    go on, whatever it ends with: bundles do not wait for embeddings."""

    name: str
    command: Sequence[str]
    vital: bool = True
    child: Child | None = None
    started_s: float = 0.0
    start_at_s: float = 0.0
    backoff: Backoff = field(default_factory=lambda: Backoff(first_s=0.5, longest_s=30.0))


class Supervisor:
    """`run` returns when `stop` is set (0) or when a worker ended with a code that no restart mends (that code)."""

    def __init__(
        self,
        places: Sequence[Place],
        *,
        spawn: Callable[[Sequence[str]], Child] = ReportingChild,
        now_s: Callable[[], float] = time.monotonic,
        stop_timeout_s: float = STOP_TIMEOUT_S,
    ) -> None:
        self.places, self._spawn, self._now_s = list(places), spawn, now_s
        self._stop_timeout_s = stop_timeout_s
        self._leaving: list[tuple[Child, float]] = []

    def want(self, places: Sequence[Place]) -> None:
        """From now on these, known by their names, shall run: others are ended in order, new ones start at the next
        look."""
        names = {place.name for place in places}
        for place in [place for place in self.places if place.name not in names]:
            self.places.remove(place)
            if place.child is not None:
                place.child.send_signal(signal.SIGTERM)
                self._leaving.append((place.child, self._now_s() + self._stop_timeout_s))
        known = {place.name for place in self.places}
        self.places += [place for place in places if place.name not in known]

    def tell_all(self, number: int) -> None:
        """Sends a signal to all that run."""
        for place in self.places:
            if place.child is not None and place.child.poll() is None:
                place.child.send_signal(number)

    def watch(self, health: Health) -> None:
        """The probes of this process speak for all of its children: those without which nothing goes on, and the others
        as notes. One that is being started again is not ready; to end its parent for it would mend nothing."""

        def problems(probe: str) -> str:
            places = self._counting()
            return "; ".join(told for place in places if (told := self._told(place, probe)))

        def notes() -> str:
            counting, told = {place.name for place in self._counting()}, []
            for place in list(self.places):
                probes = ("note",) if place.name in counting else ("live", "startup", "note")
                told += [found for probe in probes if (found := self._told(place, probe))]
            return "; ".join(told)

        health.check("processes alive", lambda: problems("live"), "live")
        health.check("processes begun", lambda: problems("startup"), "startup")
        health.check("processes ready", lambda: problems("ready"), "ready")
        health.check("processes", notes, "note")

    def _counting(self) -> list[Place]:
        places = list(self.places)
        return [place for place in places if place.vital] or places

    def _told(self, place: Place, probe: str) -> str:
        child = place.child
        if child is None:
            return "" if probe in ("live", "note") else f"{place.name}: it is to be started again"
        found = child.problems(probe, self._now_s()) if isinstance(child, Telling) else {}
        return ", ".join(f"{place.name}: {problem}" for problem in found.values())

    def run(
        self,
        stop: threading.Event,
        between: Callable[[], None] = lambda: None,
        ending: Callable[[], None] = lambda: None,
    ) -> int:
        """Blocks; call it from the main thread. `between` is called before each look, `ending` before all end."""
        code: int | None = None
        while code is None and not stop.wait(LOOK_EVERY_S):
            between()
            code = self.look()
        ending()
        self.end_all()
        return code or 0

    def look(self) -> int | None:
        """Starts what should run and does not; the exit code when all must end."""
        self._see_off()
        for place in self.places:
            ended = None if place.child is None else place.child.poll()
            if place.child is not None and ended is None:
                continue
            if place.child is not None:
                place.child = None
                if place.vital and ended in GIVE_UP_CODES:
                    return ended
                self._plan_restart(place, ended)
            if self._now_s() >= place.start_at_s:
                place.child, place.started_s = self._spawn(place.command), self._now_s()
        return None

    def _plan_restart(self, place: Place, ended: int | None) -> None:
        now_s = self._now_s()
        if now_s - place.started_s > HEALTHY_AFTER_S:
            place.backoff.reset()
        wait_s = place.backoff.next_s()
        place.start_at_s = now_s + wait_s
        logger.error("worker %s ended with code %s; starting it again in %.1f s", place.name, ended, wait_s)

    def _see_off(self) -> None:
        for child, until_s in list(self._leaving):
            if child.poll() is not None:
                self._leaving.remove((child, until_s))
            elif self._now_s() > until_s:
                child.kill()

    def end_all(self) -> None:
        """Blocks until all have ended, for as long as they may take."""
        children = [place.child for place in self.places if place.child is not None]
        for child in children:
            child.send_signal(signal.SIGTERM)
        children += [child for child, _ in self._leaving]
        until_s = self._now_s() + self._stop_timeout_s
        while any(child.poll() is None for child in children) and self._now_s() < until_s:
            time.sleep(LOOK_EVERY_S / 5)
        for child in children:
            if child.poll() is None:
                logger.error("worker process %d does not stop; killing it, which loses nothing", child.pid)
                child.kill()


def places(
    config_path: str,
    contexts: Sequence[str],
    processes: int,
    proposals: Mapping[str, Mapping[str, str]],
    metrics_port: int | None = None,
) -> list[Place]:
    """`processes` workers for each context, each told the same proposal of how sections are composed. The first serves
    its metrics at `metrics_port`, each other one port on; with 0 all at free ports."""

    def command(context: str, place: int, number: int) -> list[str]:
        words = [sys.executable, "-m", "pipeline.streams.process", "--config", config_path, context]
        proposal = proposals.get(context)
        if proposal:
            words += ["--composition", msgspec.json.encode(proposal).decode()]
        if metrics_port is not None:
            words += ["--metrics-port", str(metrics_port + place if metrics_port else 0)]
        return [*words, "--number", str(number)]

    names = [(context, number + 1) for context in contexts for number in range(processes)]
    return [Place(f"{context}/{number}", command(context, i, number)) for i, (context, number) in enumerate(names)]
