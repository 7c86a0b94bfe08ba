"""What is compared: results of two runs, or the pairs of shadow traffic, each with the models that answered. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.evaluation.digests import canonical, digest_of, sha256
from pipeline.evaluation.statistics.matching import NAMED_MAX, CompareError, some
from pipeline.evaluation.values import CaseResult, Run
from pipeline.guard.config import GuardConfig
from pipeline.guard.evidence import Compared
from pipeline.guard.routing.pairs import Pair
from pipeline.guard.routing.pairs import Side as Answer

Name = Literal["A", "B"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """A or B. `label`: where it is from. `models`: by task who was asked first; `unread`: tasks whose model the header
    names in no way that can be taken apart. `results_sha256`: of the results file, or of this side's answers.
    `left_out`: pairs of models that were compared before."""

    name: Name
    label: str
    suite: str
    suite_digest: str
    flow: str
    results: tuple[CaseResult, ...]
    results_sha256: str
    models: Mapping[str, Compared]
    unread: tuple[str, ...] = ()
    left_out: int = 0


def side_of_run(name: Name, label: str, run: Run, results_sha256: str, guard: GuardConfig | None = None) -> Side:
    """`guard`: the suite's own, where it was run here; a results file names models in words only. Raises CompareError
    for a run that decides nothing."""
    if run.harness:
        raise CompareError(
            [
                f"{name} ({label}) decides nothing: {len(run.harness)} cases could not be run",
                *run.harness[:NAMED_MAX],
                *([f"and {len(run.harness) - NAMED_MAX} more"] if len(run.harness) > NAMED_MAX else []),
            ]
        )
    read = {task: _compared(told, results_sha256) for task, told in run.models.items()}
    if guard is not None:
        endpoints = {one.name: one for one in guard.endpoints}
        first = {task: endpoints[route.primary] for task, route in guard.routes.items()}
        read = {
            task: Compared(endpoint=one.name, model=one.model, revision=one.revision, results_sha256=results_sha256)
            for task, one in first.items()
        }
    return Side(
        name=name,
        label=label,
        suite=run.suite,
        suite_digest=run.suite_digest,
        flow=run.flow,
        results=run.results,
        results_sha256=results_sha256,
        models={task: one for task, one in read.items() if one is not None},
        unread=tuple(task for task, one in read.items() if one is None),
    )


def mistakes_between(a: Side, b: Side) -> list[str]:
    """Why these two can't be compared, a sentence each."""
    if a.suite != b.suite:
        return [f"A is of the suite {a.suite!r}, B of {b.suite!r}; run both models on one suite"]
    if a.suite_digest != b.suite_digest:
        return [
            f"A and B are of two states of the suite {a.suite!r} (digests {a.suite_digest[:12]}… and "
            f"{b.suite_digest[:12]}…): cases or fixtures changed in between; run both on one of them"
        ]
    return []


def task_of(a: Side, b: Side, task: str | None) -> str:
    """The task whose model differs. Raises CompareError where that is none or several, or another than is asked for: a
    gain that two changes share proves neither."""
    if a.flow != b.flow:
        raise CompareError(
            [f"A ran the flow {a.flow!r}, B {b.flow!r}; evidence is of one change: run both with one flow"]
        )
    unread = sorted({*a.unread, *b.unread})
    if task in unread or (task is None and unread):
        raise CompareError(
            [f"which endpoint, model and revision answered {some(unread)} can't be read from the results; rename what "
             "has spaces in its name, or compare the suite's folder with --model A=… --model B=…"]
        )  # fmt: skip
    tasks = sorted(a.models.keys() | b.models.keys())
    differ = [one for one in tasks if _identity(a.models.get(one)) != _identity(b.models.get(one))]
    if task is not None and task not in tasks:
        raise CompareError([f"there is no task {task!r} in these results, only {', '.join(tasks) or 'none'}"])
    if task is not None and task not in differ:
        raise CompareError([f"A and B ask the same model for the task {task!r}; nothing is compared"])
    if not differ:
        raise CompareError(["A and B ask the same models; run one of them with another, see --model"])
    if len(differ) > 1:
        raise CompareError(
            [f"A and B differ in the models of {len(differ)} tasks ({', '.join(differ)}); evidence is of one change: "
             "run B with the other tasks as in A"]
        )  # fmt: skip
    return differ[0]


def sides_of_pairs(pairs: Sequence[Pair], label: str, task: str | None) -> tuple[Side, Side]:
    """Of shadow traffic, in the order in which it came; only those of the models that were compared last. Raises
    CompareError where there are none, or of several tasks."""
    tasks = sorted({pair.task for pair in pairs})
    if not pairs:
        raise CompareError([f"{label} has no pairs yet; a candidate of the routing file leaves them"])
    if task is None and len(tasks) > 1:
        raise CompareError([f"{label} has pairs of {len(tasks)} tasks ({', '.join(tasks)}); choose one with --task"])
    if task is not None and task not in tasks:
        raise CompareError([f"{label} has no pairs of the task {task!r}, only of {', '.join(tasks)}"])
    chosen = task or tasks[0]
    mine = sorted((pair for pair in pairs if pair.task == chosen), key=lambda pair: (pair.at_us, pair.key))
    last = mine[-1]
    same = [pair for pair in mine if _asked(pair) == _asked(last)]
    return _side("A", label, same, len(mine) - len(same)), _side("B", label, same, len(mine) - len(same))


def results_of_pair(pair: Pair) -> tuple[CaseResult, CaseResult]:
    """As two results of one case; its id sorts by the time of its question."""
    return _result(pair, pair.active), _result(pair, pair.candidate)


def _side(name: Name, label: str, pairs: Sequence[Pair], left_out: int) -> Side:
    """The digest of the "suite" is that of the questions, which both sides share."""
    results = tuple(results_of_pair(pair)[0 if name == "A" else 1] for pair in pairs)
    answer = pairs[-1].active if name == "A" else pairs[-1].candidate
    digest = sha256(b"\n".join(canonical(one) for one in results))
    compared = Compared(endpoint=answer.endpoint, model=answer.model, revision=answer.revision, results_sha256=digest)
    return Side(
        name=name,
        label=label,
        suite=f"shadow:{pairs[-1].task}",
        suite_digest=digest_of([[pair.key, pair.at_us] for pair in pairs]),
        flow="",
        results=results,
        results_sha256=digest,
        models={pairs[-1].task: compared},
        left_out=left_out,
    )


def _result(pair: Pair, answer: Answer) -> CaseResult:
    answered = not answer.reason
    measures: dict[str, float | None] = {
        **answer.scores,
        "latency_ms": answer.latency_ms,
        "cost": answer.cost,
        "malformed": float(answer.malformed),
    }
    return CaseResult(
        id=f"{pair.at_us:017}-{pair.key}",
        kind="output",
        group=pair.group,
        tags=(),
        digest=pair.key,
        passed=answered,
        checks=(),
        output=answer.output,
        output_digest=digest_of([answer.endpoint, answer.output, answer.reason]),
        measures=measures,
    )


def _asked(pair: Pair) -> tuple[str, ...]:
    return tuple(part for one in (pair.active, pair.candidate) for part in (one.endpoint, one.model, one.revision))


def _compared(told: str, results_sha256: str) -> Compared | None:
    """From `endpoint model revision`, as a run tells it."""
    parts = told.split(" ")
    if len(parts) not in (2, 3) or not all(parts):
        return None
    endpoint, model, *revision = parts
    return Compared(endpoint=endpoint, model=model, revision="".join(revision), results_sha256=results_sha256)


def _identity(one: Compared | None) -> Iterable[str]:
    return () if one is None else (one.endpoint, one.model, one.revision)
