"""Cases spread over processes: one case at a time each, so that one that takes its process down takes nothing else."""

from __future__ import annotations

import logging
import multiprocessing
import os
import random
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from pipeline.core.errors import EnvironmentProblem
from pipeline.evaluation.errors import SuiteError
from pipeline.evaluation.judging import result_of
from pipeline.evaluation.models.answers import Source
from pipeline.evaluation.python_flow import observe, told_of
from pipeline.evaluation.suite import Suite, import_object, prepare_imports
from pipeline.evaluation.values import Case, CaseResult, Observed
from pipeline.guard.errors import HarnessError

_LOG = logging.getLogger("ctxpipe.evaluation")
START_S = 120.0
"""Until a new process has imported what it needs."""
GRACE_S = 10.0
"""After a case's own limit, until its process is ended from outside."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one case: its result, or why it could not be run."""

    id: str
    result: CaseResult | None
    harness: str = ""


def outcome_of(suite: Suite, case: Case, source: Source | None = None) -> Outcome:
    """Runs it here."""
    random.seed(case.id)  # what a flow draws by chance, it draws alike in every run
    try:
        return Outcome(case.id, result_of(suite, case, observe(suite, case, source)))
    except HarnessError as error:
        return Outcome(case.id, None, harness_told(case, str(error)))
    except Exception as error:  # noqa: BLE001 - a defect of ours is no verdict on the flow, and no end of the run
        _LOG.debug("case %s", case.id, exc_info=error)
        return Outcome(case.id, None, harness_told(case, f"a defect of the harness: {told_of(error)}"))


def harness_told(case: Case, told: str) -> str:
    """With the case's id, where it is not named already."""
    return told if f"case {case.id}:" in told else f"case {case.id}: {told}"


def run_in_processes(suite: Suite, cases: Sequence[Case], jobs: int, prepare: str | None) -> Iterator[Outcome]:
    """As they come. Ends its processes whatever happens. Raises SuiteError where `prepare` fails or a process ends
    before its first case, EnvironmentProblem where none can be started."""
    pool = _Pool(suite, jobs, prepare)
    try:
        yield from pool.run(cases)
    finally:
        pool.end()


class _Worker:
    """One process and what it does."""

    def __init__(self, suite: Suite, prepare: str | None) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(target=_work, args=(theirs, suite, prepare), daemon=True)
        try:
            self.process.start()
        except OSError as error:
            raise EnvironmentProblem(f"no process can be started for cases: {error.strerror}") from None
        theirs.close()
        self.case: Case | None = None
        self.ready = False
        self.until_s = time.monotonic() + START_S

    def give(self, case: Case, limit_s: float) -> None:
        self.case, self.until_s = case, time.monotonic() + limit_s + GRACE_S
        self.connection.send(case.id)

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


class _Pool:
    def __init__(self, suite: Suite, jobs: int, prepare: str | None) -> None:
        self._suite, self._jobs, self._prepare = suite, jobs, prepare
        self._workers: list[_Worker] = []

    def run(self, cases: Sequence[Case]) -> Iterator[Outcome]:
        left = deque(cases)
        self._workers = [self._new() for _ in range(min(self._jobs, len(cases)))]
        while left or any(worker.case for worker in self._workers):
            for worker in self._workers:
                if worker.ready and worker.case is None and left:
                    worker.give(left.popleft(), self._suite.manifest.case_s_max)
            yield from self._look()

    def end(self) -> None:
        for worker in self._workers:
            worker.end()

    def _new(self) -> _Worker:
        return _Worker(self._suite, self._prepare)

    def _look(self) -> Iterator[Outcome]:
        """What came within a moment, and what will never come."""
        heard = wait([worker.connection for worker in self._workers], timeout=0.5)
        for place, worker in enumerate(self._workers):
            if worker.connection in heard:
                found = self._hear(worker)
                if found is not None:
                    yield found
                    continue
            if worker.process.is_alive() and time.monotonic() < worker.until_s:
                continue
            if worker.case is None and worker.ready and worker.process.is_alive():
                continue
            yield from self._lost(place, worker)

    def _hear(self, worker: _Worker) -> Outcome | None:
        try:
            message = worker.connection.recv()
        except (EOFError, OSError):
            worker.process.join()
            return None
        if message is True:
            worker.ready = True
            return None
        if isinstance(message, str):
            raise SuiteError([message])
        assert isinstance(message, Outcome)
        worker.case = None
        return message

    def _lost(self, place: int, worker: _Worker) -> Iterator[Outcome]:
        alive, code, case = worker.process.is_alive(), worker.process.exitcode, worker.case
        if not worker.ready:
            told = f"did not start within {START_S:g} s" if alive else f"ended before its first case (exit code {code})"
            raise SuiteError([f"a process for cases {told}"])
        worker.end()
        if case is not None:
            limit_s = self._suite.manifest.case_s_max
            told = f"it took more than {limit_s:g} s and could not be ended" if alive else _died(code)
            yield Outcome(case.id, result_of(self._suite, case, Observed(raised=told)))
        self._workers[place] = self._new()


def _died(code: int | None) -> str:
    if code is not None and code < 0:
        return f"it took its process down ({signal.Signals(-code).name})"
    return f"it ended its process (exit code {code})"


def _work(connection: Connection, suite: Suite, prepare: str | None) -> None:
    """The life of such a process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the one who waits for us ends us
    os.dup2(2, 1)  # what a flow prints must not stand among our answers
    logging.getLogger().addHandler(logging.NullHandler())
    prepare_imports(suite.folder, suite.flow)
    if prepare is not None:
        try:
            import_object(prepare)()
        except Exception as error:  # noqa: BLE001 - code of whoever runs the suite; told where the run was asked for
            connection.send(f"{prepare} failed: {type(error).__name__}: {error}")
            return
    cases = {case.id: case for case in suite.cases}
    connection.send(True)
    while True:
        try:
            name = connection.recv()
        except (EOFError, OSError):
            return
        sys.stdout.flush()
        connection.send(outcome_of(suite, cases[name]))
