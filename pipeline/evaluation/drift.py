"""Whether models still answer as when they were recorded: the same cases, asked live, beside the recorded past.

suite → (past from recordings | now from live answers, some draws) → pairs → verdict

A model that changes under the same name shows here before users see it. What endpoints that are away would say is not
guessed: a look that lost too many cases decides nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from pipeline.evaluation.compare import Comparison, compare_paired
from pipeline.evaluation.errors import SuiteError
from pipeline.evaluation.models.answers import Asked
from pipeline.evaluation.models.gathering import Lacking, gather
from pipeline.evaluation.models.guarding import recorded, recordings_of
from pipeline.evaluation.models.live import Live, answering_models
from pipeline.evaluation.models.recordings import Recording, Recordings
from pipeline.evaluation.runner import run_suite
from pipeline.evaluation.statistics.judging import ALPHA
from pipeline.evaluation.statistics.matching import value_of
from pipeline.evaluation.suite import Suite
from pipeline.evaluation.values import Case, CaseResult
from pipeline.guard.values import RawAnswer
from pipeline.guard.wire import Envelope, read_answer

Verdict = Literal["steady", "worse", "inconclusive", "undecided"]
EXIT_CODES: Mapping[Verdict, int] = {"steady": 0, "worse": 1, "inconclusive": 2, "undecided": 3}
LOST_SHARE_MAX = 0.1
"""Of the cases, that may get no live answer; those that are lost are rarely lost by chance."""
MEASURES = ("latency_ms", "cost", "malformed")
ANSWER = "answer_ms"
_SCORE = "score"


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """A case whose metric differs: what it was, what it is (the mean of the draws), and the first check that failed."""

    id: str
    kind: str
    group: str
    past: float
    now: float
    told: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherModel:
    """An endpoint that says another name of its model than when it was recorded."""

    endpoint: str
    past: tuple[str, ...]
    now: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """One look. Points are of 100, now less past; `low` is the one-sided 95% bound. `other_answers`: of the requests
    that were asked then and now, the share whose text differs; None where there were none. `measures`: means then and
    now, None where some are unknown. `lost`: by case, why it could not be compared."""

    suite: str
    verdict: Verdict
    why: str
    metric: str
    margin_points: float
    cases: int
    pairs: int = 0
    groups: int = 0
    draws: int = 1
    past_mean: float | None = None
    now_mean: float | None = None
    difference: float | None = None
    low: float | None = None
    p_worse: float | None = None
    fell: tuple[Moved, ...] = ()
    rose: tuple[Moved, ...] = ()
    other_answers: float | None = None
    other_models: tuple[OtherModel, ...] = ()
    measures: Mapping[str, tuple[float | None, float | None]] = field(default_factory=dict)
    lost: Mapping[str, str] = field(default_factory=dict)
    harness: tuple[str, ...] = ()
    calls: int = 0
    cost: float = 0.0
    cost_unknown: int = 0

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.verdict]


@dataclass(frozen=True, slots=True)
class Past:
    """What the recordings say. `cases`: those that ask a model, `lost` those of them that lack a recording."""

    cases: tuple[Case, ...]
    results: Mapping[str, CaseResult]
    recordings: Recordings
    lost: Mapping[str, str]


def past_of(suite: Suite, cases: Sequence[Case]) -> Past:
    """Runs the cases from the recordings: whoever asks nothing there can't drift. Raises SuiteError where none asks."""
    source, asking = recorded(suite), set[str]()

    def noted(asked: Asked) -> RawAnswer:
        asking.add(asked.case)
        return source(asked)

    run = run_suite(replace(suite, cases=tuple(cases)), jobs=0, source=noted)
    results = {result.id: result for result in run.results if result.id in asking}
    told = list(run.harness)
    chosen = tuple(case for case in cases if case.id in asking)
    lost = {case.id: _of_case(case.id, told) for case in chosen if case.id not in results}
    if not results:
        first = f": {told[0]}" if told else "; none of its cases asks a model"
        raise SuiteError([f"{suite.folder} has no recorded past to compare with{first}"])
    return Past(chosen, results, recordings_of(suite), lost)


def look(
    suite: Suite,
    past: Past,
    lives: Sequence[Live],
    *,
    metric: str = _SCORE,
    margin_points: float = 5.0,
    allowed: Callable[[Lacking], bool] = lambda _: True,
    running: Callable[[int, int], None] | None = None,
    live_times: bool = False,
) -> Drift:
    """Asks everything anew, once for each of `lives`, and judges. Unless `live_times`, answers take as long as when
    they were recorded: that this hour is a busy one says nothing of the model. Raises SuiteError, KeyboardInterrupt."""
    cases, times = past.cases, None if live_times else past.recordings
    draws: list[Mapping[str, CaseResult]] = []
    lost, harness = dict(past.lost), list[str]()
    for live in lives:
        left = [case for case in cases if case.id not in lost]
        gathered = gather(suite, live, Recordings(), left, allowed, running, times)
        draws.append(gathered.results)
        lost.update(gathered.failed)
        harness += [told for told in gathered.harness if told not in harness]
        if gathered.declined:
            lost.update({case.id: "its models were not asked" for case in cases if case.id not in gathered.results})
    lost.update({case.id: _of_case(case.id, harness) for case in cases if not _everywhere(case.id, past, draws, lost)})
    found = judged(
        suite.name,
        {name: one for name, one in past.results.items() if name not in lost},
        [{name: one for name, one in results.items() if name not in lost} for results in draws],
        cases=len(cases),
        lost=lost,
        metric=metric,
        margin_points=margin_points,
    )
    made = [one for live in lives for one in live.recordings()]
    return replace(
        found,
        other_answers=other_answers(past.recordings, made),
        other_models=other_models(past.recordings, made),
        measures={**found.measures, ANSWER: answer_ms(past.recordings, made)} if found.measures else {},
        harness=tuple(harness),
        calls=sum(live.calls for live in lives),
        cost=float(sum(live.cost for live in lives)),
        cost_unknown=sum(live.cost_unknown for live in lives),
    )


def judged(
    suite: str,
    past: Mapping[str, CaseResult],
    draws: Sequence[Mapping[str, CaseResult]],
    *,
    cases: int,
    lost: Mapping[str, str],
    metric: str,
    margin_points: float,
) -> Drift:
    """Of cases that are in the past and in every draw. Pure."""
    known = {"suite": suite, "metric": metric, "margin_points": margin_points, "cases": cases, "lost": dict(lost)}
    if len(lost) > LOST_SHARE_MAX * cases or not past:
        first = next(iter(sorted(lost.items())), ("", ""))
        why = f"{len(lost)} of {cases} cases could not be compared; the first is {first[0]}: {first[1]}"
        return Drift(verdict="undecided", why=why, draws=len(draws), **known)  # type: ignore[arg-type]
    then = [_averaged([one], metric) for _, one in sorted(past.items())]
    now = [_averaged([results[name] for results in draws], metric) for name in sorted(past)]
    compared = compare_paired(then, now, metric=_SCORE)
    verdict, why = _verdict(compared, metric, margin_points)
    moved = _moved(compared, draws)
    return Drift(
        verdict=verdict,
        why=why,
        pairs=compared.pairs,
        groups=compared.groups,
        draws=len(draws),
        past_mean=compared.active_mean,
        now_mean=compared.candidate_mean,
        difference=compared.difference,
        low=compared.low,
        p_worse=compared.p_worse,
        fell=tuple(one for one in moved if one.now < one.past),
        rose=tuple(one for one in moved if one.now > one.past),
        measures={name: (_mean(then, name), _mean(now, name)) for name in MEASURES},
        **known,  # type: ignore[arg-type]
    )


def other_answers(past: Recordings, made: Sequence[Recording]) -> float | None:
    """The share of answers whose text is not that of the past's first answer to the same request."""
    pairs = [(before, one) for one in made if (before := past.find(one.key, 0)) is not None]
    if not pairs:
        return None
    return sum(_said(before) != _said(one) for before, one in pairs) / len(pairs)


def answer_ms(past: Recordings, made: Sequence[Recording]) -> tuple[float | None, float | None]:
    """How long an answer took then and now, of requests that were answered both times."""
    pairs = [(before, one) for one in made if (before := past.find(one.key, 0)) is not None]
    whole = [(a.answer.took_s, b.answer.took_s) for a, b in pairs if a.answer.failure is b.answer.failure is None]
    if not whole:
        return None, None
    return tuple(1000 * math.fsum(side) / len(whole) for side in zip(*whole, strict=True))  # type: ignore[return-value]


def other_models(past: Recordings, made: Sequence[Recording]) -> tuple[OtherModel, ...]:
    """Endpoints that were asked the same then and now, and name themselves otherwise."""
    keys = {one.key for one in made}
    then, now = answering_models(one for one in past if one.key in keys), answering_models(made)
    found = [(name, tuple(sorted(then.get(name, ()))), tuple(sorted(models))) for name, models in now.items()]
    return tuple(
        OtherModel(endpoint=name, past=old, now=new) for name, old, new in found if old and set(new) - set(old)
    )


def _verdict(compared: Comparison, metric: str, margin_points: float) -> tuple[Verdict, str]:
    """Worse is what chance does not explain, however little; the margin is for what it may explain."""
    pairs = f"{compared.pairs} pairs in {compared.groups} groups"
    if compared.better == compared.worse == 0:
        return "steady", f"{metric} is the same in every case ({pairs})"
    figures = (
        f"{metric} {compared.difference:+.2f} points, at least {compared.low:+.2f}; {compared.worse} cases fell, "
        f"{compared.better} rose ({pairs})"
    )
    if compared.difference < 0 and compared.p_worse <= ALPHA:
        return "worse", f"the answers got worse: {figures}, p = {compared.p_worse:.2g}"
    if compared.difference >= -margin_points:
        return "steady", f"no more than chance, and within {margin_points:g} points: {figures}"
    unclear = f"a loss of more than {margin_points:g} points, which may be chance"
    return "inconclusive", f"{unclear}: {figures}, p = {compared.p_worse:.2g}; ask more draws, or write more cases"


def _averaged(draws: Sequence[CaseResult], metric: str) -> CaseResult:
    """One result whose `score` is the mean of the metric."""
    values = [value_of(one, metric) for one in draws]
    score = math.fsum(value for value in values if value is not None) / len(values) if None not in values else None
    means = {name: _mean(draws, name) for name in MEASURES}
    return replace(draws[0], measures={**means, _SCORE: score})


def _mean(results: Iterable[CaseResult], measure: str) -> float | None:
    values = [one.measures.get(measure) for one in results]
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known and len(known) == len(values) else None


def _moved(compared: Comparison, draws: Sequence[Mapping[str, CaseResult]]) -> list[Moved]:
    found = []
    for one in compared.changed:
        failed = [check.told for results in draws for check in results[one.id].checks if not check.passed]
        found.append(
            Moved(
                id=one.id,
                kind=one.kind,
                group=one.group,
                past=one.active,
                now=one.candidate,
                told=failed[0] if failed else "",
            )
        )
    return found


def _said(one: Recording) -> object:
    """What the model said; of an answer that is none, its bytes."""
    envelope = read_answer(one.answer.body)
    return (envelope.text, envelope.asked) if isinstance(envelope, Envelope) else one.answer.body


def _everywhere(name: str, past: Past, draws: Sequence[Mapping[str, CaseResult]], lost: Mapping[str, str]) -> bool:
    return name in lost or (name in past.results and all(name in results for results in draws))


def _of_case(name: str, told: Iterable[str]) -> str:
    return next((one for one in told if name in one), "it could not be run")
