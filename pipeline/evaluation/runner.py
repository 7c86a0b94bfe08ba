"""`run_suite`: a suite and a choice of its cases → one run, the same whatever the order and the number of processes.

suite → (processes of one case at a time | the server for http flows) → outcomes → run
"""

from __future__ import annotations

import fnmatch
import os
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, redirect_stdout
from random import Random

from pipeline.evaluation.errors import SuiteError
from pipeline.evaluation.models.answers import Source
from pipeline.evaluation.results_file import run_digest
from pipeline.evaluation.suite import FLOWLESS, Suite, import_object, prepare_imports
from pipeline.evaluation.values import KINDS, Case, Run
from pipeline.evaluation.workers import Outcome, outcome_of, run_in_processes
from schemas.yaml_file import suggestion

Progress = Callable[[int, int], None]
CASES_PER_JOB_MIN = 8
"""A process takes about as long to start as so many cases to run."""


def run_suite(
    suite: Suite,
    *,
    only: Sequence[str] | None = None,
    jobs: int | None = None,
    seed: int | None = None,
    progress: Progress | None = None,
    source: Source | None = None,
    prepare: str | None = None,
) -> Run:
    """Runs all cases, or those that `only` names (see `chosen`).

    `jobs`: processes; 0 runs them in this one; None: as many as there are processors. `seed`: of the order of running;
    None: by id. `progress` hears (done, of all). `source`: where models' answers come from, instead of the recordings;
    needs jobs 0. `prepare` is module:function, called in each process before its first case. Raises SuiteError where
    the run can't begin; what keeps single cases from being run is in `Run.harness`.
    """
    cases = list(chosen(suite, only))
    if seed is not None:
        Random(seed).shuffle(cases)
    began_s = time.monotonic()
    results, harness = [], []
    with closing(_outcomes(suite, cases, jobs, source, prepare)) as outcomes:
        for done, outcome in enumerate(outcomes, 1):
            if outcome.result is not None:
                results.append(outcome.result)
            if outcome.harness:
                harness.append(outcome.harness)
            if progress is not None:
                progress(done, len(cases))
    results.sort(key=lambda result: result.id)
    return Run(
        suite=suite.name,
        suite_digest=suite.digest,
        digest=run_digest(results),
        flow=_flow_name(suite),
        models=models_of(suite),
        fixtures=suite.fixtures,
        results=tuple(results),
        harness=tuple(sorted(harness)),
        seconds=time.monotonic() - began_s,
    )


def chosen(suite: Suite, only: Sequence[str] | None) -> Iterable[Case]:
    """In the order of ids. Each of `only` is an id, a pattern of ids (`flight/*`), a kind, or `tag:NAME`; a case is run
    where one of them fits. Raises SuiteError for one that fits nothing."""
    if not only:
        return suite.cases
    known = [case.id for case in suite.cases]
    names = [*known, *KINDS]
    wrong = [one for one in only if not any(_fits(case, one) for case in suite.cases)]
    if wrong:
        raise SuiteError([f"no case of {suite.folder} fits {one!r}{_meant(one, names)}" for one in wrong])
    return [case for case in suite.cases if any(_fits(case, one) for one in only)]


def models_of(suite: Suite) -> dict[str, str]:
    """Per task what is asked first: endpoint, model and revision."""
    if suite.guard is None:
        return {}
    endpoints = {one.name: one for one in suite.guard.endpoints}
    found = {}
    for task, route in sorted(suite.guard.routes.items()):
        endpoint = endpoints[route.primary]
        found[task] = " ".join(part for part in (endpoint.name, endpoint.model, endpoint.revision) if part)
    return found


def _outcomes(
    suite: Suite, cases: Sequence[Case], jobs: int | None, source: Source | None, prepare: str | None
) -> Generator[Outcome, None, None]:
    over_http = suite.flow is not None and suite.flow.http is not None
    here = [case for case in cases if not over_http or case.kind in FLOWLESS]
    if jobs is None:
        jobs = max(1, min(os.cpu_count() or 1, len(here) // CASES_PER_JOB_MIN))
    if source is not None and jobs:
        raise SuiteError(["answers of another source come to this process only; run with jobs=0"])
    if jobs and here:
        yield from run_in_processes(suite, here, jobs, prepare)
    elif here:
        yield from _here(suite, here, source, prepare)
    there = [case for case in cases if over_http and case.kind not in FLOWLESS]
    if there:
        from pipeline.evaluation.http_flow import run_over_http

        yield from run_over_http(suite, there, source)


def _here(suite: Suite, cases: Sequence[Case], source: Source | None, prepare: str | None) -> Iterator[Outcome]:
    prepare_imports(suite.folder, suite.flow)
    if prepare is not None:
        import_object(prepare)()
    for case in cases:
        with redirect_stdout(sys.stderr):
            outcome = outcome_of(suite, case, source)
        yield outcome


def _fits(case: Case, one: str) -> bool:
    if one.startswith("tag:"):
        return one.removeprefix("tag:") in case.tags
    return one in (case.id, case.kind) or fnmatch.fnmatchcase(case.id, one)


def _meant(one: str, names: Sequence[str]) -> str:
    hint = suggestion(one, names)
    return hint if "did you mean" in hint else f"; write an id, a pattern like 'a/*', tag:NAME or {', '.join(KINDS)}"


def _flow_name(suite: Suite) -> str:
    if suite.flow is None:
        return ""
    return suite.flow.python or (suite.flow.http.url if suite.flow.http else "")
