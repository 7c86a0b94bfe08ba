"""The gate: what a run means against its baseline, as one verdict with its reasons; pure.

run + baseline → judgement → report, exit code
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.evaluation.baseline import Baseline, BlessedCase, graded_scores, some
from pipeline.evaluation.values import CaseResult, Run

Verdict = Literal["pass", "partial", "regression", "inconclusive", "harness_error"]
"""`partial`: nothing flipped among the cases that were chosen, which says nothing of the whole suite."""
EXIT_CODES: Mapping[Verdict, int] = {"pass": 0, "partial": 0, "regression": 1, "inconclusive": 2, "harness_error": 3}

State = Literal["regressed", "failed", "missing", "improved"]
"""`failed`: a case that the baseline does not have."""
BLOCKING: tuple[State, ...] = ("regressed", "failed", "missing")

Lower = Callable[[Sequence[float], Sequence[float], Sequence[str]], Literal["lower", "same", "unknown"]]
"""(scores of the baseline, scores now, groups), pairwise → whether more than chance speaks for a loss."""

SAME = 1e-9
"""Scores that differ by less are one: sums of products end otherwise on another processor."""
BLESS = 'if that is meant: ctxpipe eval bless SUITE --reason "…"'


@dataclass(frozen=True, slots=True, kw_only=True)
class Flip:
    """A case that is not what it was. `now` None: missing; `before` None: not in the baseline."""

    id: str
    state: State
    kind: str
    why: str
    before: BlessedCase | None
    now: CaseResult | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Graded:
    """A graded check over all cases that have it: mean score before and now, 0 to 1, and how many cases moved."""

    check: str
    cases: int
    before: float
    now: float
    fell: tuple[str, ...]
    rose: tuple[str, ...]
    judged: Literal["lower", "same", "unknown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """`reasons`: why the verdict is what it is, a sentence each; `notes`: what else is worth knowing. `accepted`: cases
    that fail and failed in the baseline too. `other_output`: cases that pass as before, with another output."""

    suite: str
    suite_digest: str
    digest: str
    verdict: Verdict
    cases: int
    passed: int
    failed: int
    seconds: float
    reasons: tuple[str, ...]
    notes: tuple[str, ...] = ()
    flips: tuple[Flip, ...] = ()
    new: tuple[str, ...] = ()
    accepted: tuple[str, ...] = ()
    other_output: tuple[str, ...] = ()
    graded: tuple[Graded, ...] = ()

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.verdict]

    def of(self, *states: State) -> tuple[str, ...]:
        """Ids of the flips in these states."""
        return tuple(flip.id for flip in self.flips if flip.state in states)


def judged(
    run: Run,
    whys: Mapping[str, str],
    suite_digest: str,
    baseline: Baseline | None,
    *,
    lower: Lower,
    whole: bool = True,
    against_baseline: bool = True,
) -> Judgement:
    """`whys`: of every case of the suite, by id, run or not. `whole`: all of them were to be run. Without
    `against_baseline` every case simply has to pass."""
    known = baseline if against_baseline else None
    old = known.by_id if known else {}
    flips = tuple(_flips(run.results, whys, old))
    graded = tuple(_graded(run.results, old, lower))
    new = tuple(result.id for result in run.results if known and result.id not in old)
    harness = tuple(_harness(run, whys, baseline, whole=whole, against_baseline=against_baseline))
    verdict, reasons = _verdict(flips, graded, harness, whole=whole, cases=len(run.results), of=len(whys))
    return Judgement(
        suite=run.suite,
        suite_digest=suite_digest,
        digest=run.digest,
        verdict=verdict,
        cases=len(run.results),
        passed=sum(result.passed for result in run.results),
        failed=sum(not result.passed for result in run.results),
        seconds=run.seconds,
        reasons=reasons,
        notes=tuple(note for note in _notes(run, known, graded, new) if note not in reasons),
        flips=flips,
        new=new,
        accepted=tuple(one.id for one in run.results if one.id in old and not one.passed and not old[one.id].passed),
        other_output=tuple(_other_output(run.results, old)),
        graded=graded,
    )


def stopped(suite: str, told: Sequence[str]) -> Judgement:
    """Of a suite that could not be run at all."""
    return Judgement(
        suite=suite,
        suite_digest="",
        digest="",
        verdict="harness_error",
        cases=0,
        passed=0,
        failed=0,
        seconds=0.0,
        reasons=tuple(told),
    )


def _flips(results: Iterable[CaseResult], whys: Mapping[str, str], old: Mapping[str, BlessedCase]) -> Iterable[Flip]:
    """Those that block first, by id."""
    found = [_flip(result, whys, old.get(result.id)) for result in results]
    gone = [
        Flip(id=name, state="missing", kind=case.kind, why="", before=case, now=None)
        for name, case in old.items()
        if name not in whys
    ]
    flips = [flip for flip in (*found, *gone) if flip is not None]
    return sorted(flips, key=lambda flip: (flip.state == "improved", flip.id))


def _flip(result: CaseResult, whys: Mapping[str, str], before: BlessedCase | None) -> Flip | None:
    state: State
    if before is None and not result.passed:
        state = "failed"
    elif before is not None and before.passed and not result.passed:
        state = "regressed"
    elif before is not None and not before.passed and result.passed:
        state = "improved"
    else:
        return None
    why = whys.get(result.id, "")
    return Flip(id=result.id, state=state, kind=result.kind, why=why, before=before, now=result)


def _graded(results: Iterable[CaseResult], old: Mapping[str, BlessedCase], lower: Lower) -> Iterable[Graded]:
    """Of cases that are the same as in the baseline; those that fell under their floor are flips already."""
    pairs: defaultdict[str, list[tuple[CaseResult, float, float]]] = defaultdict(list)
    for result in results:
        before = old.get(result.id)
        if before is None or before.digest != result.digest:
            continue
        for name, score in graded_scores(result.checks).items():
            if name in before.scores:
                pairs[name.partition("#")[0]].append((result, before.scores[name], score))
    for check, found in sorted(pairs.items()):
        was, now = [one[1] for one in found], [one[2] for one in found]
        less = math.fsum(now) < math.fsum(was) - SAME
        yield Graded(
            check=check,
            cases=len(found),
            before=math.fsum(was) / len(found),
            now=math.fsum(now) / len(found),
            fell=tuple(result.id for result, before, score in found if score < before - SAME),
            rose=tuple(result.id for result, before, score in found if score > before + SAME),
            judged=lower(was, now, [result.group for result, _, _ in found]) if less else "same",
        )


def _harness(
    run: Run, whys: Mapping[str, str], baseline: Baseline | None, *, whole: bool, against_baseline: bool
) -> Iterable[str]:
    """What keeps the run from deciding anything, a sentence each."""
    yield from run.harness
    ran = {result.id for result in run.results}
    if not ran and not run.harness:
        yield "no case was run"
    silent = sorted(whys.keys() - ran) if whole and not run.harness else []
    if silent and ran:
        yield f"no result came of {listed(silent)}"
    if not against_baseline:
        return
    if baseline is None:
        yield 'the suite has no baseline: look at what fails, then ctxpipe eval bless SUITE --reason "first baseline"'
        return
    if baseline.suite != run.suite:
        yield f"the baseline is of suite {baseline.suite!r}, this is {run.suite!r}; {BLESS}"
    changed = _changed_fixtures(baseline.fixtures, run.fixtures)
    if changed:
        yield f"fixtures are not what was blessed: {some(changed, 10)}; {BLESS}"
    old = baseline.by_id
    rewritten = [one.id for one in run.results if one.id in old and old[one.id].digest != one.digest]
    if rewritten:
        yield f"rewritten since they were blessed: {listed(rewritten)}; {BLESS}"


def _changed_fixtures(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """New ones are not among them: no case of the baseline can rest on them."""
    found = []
    for file in sorted(before):
        if file not in now:
            found.append(f"{file} (gone)")
        elif before[file] != now[file]:
            found.append(f"{file} (changed)")
    return found


def _verdict(
    flips: Sequence[Flip], graded: Sequence[Graded], harness: Sequence[str], *, whole: bool, cases: int, of: int
) -> tuple[Verdict, tuple[str, ...]]:
    if harness:
        return "harness_error", tuple(harness)
    regressions = [*_counted(flips), *(_lower(one) for one in graded if one.judged == "lower")]
    if regressions:
        return "regression", tuple(regressions)
    open_questions = [_unknown(one) for one in graded if one.judged == "unknown"]
    if open_questions:
        return "inconclusive", tuple(open_questions)
    if not whole and cases < of:
        return "partial", (f"nothing flipped in {cases} of {of} cases; the others were not run",)
    return "pass", (f"{cases} cases, none worse than before",)


def _counted(flips: Sequence[Flip]) -> Iterable[str]:
    told: dict[State, str] = {
        "regressed": "passed before, failing now",
        "failed": "failing, and not in the baseline",
        "missing": "in the baseline, missing from the suite",
    }
    for state in BLOCKING:
        names = [flip.id for flip in flips if flip.state == state]
        if names:
            yield f"{told[state]}: {listed(names)}"


def listed(names: Sequence[str]) -> str:
    """How many, and the first ten."""
    return f"{len(names)} case{'s' if len(names) != 1 else ''} ({some(names, 10)})"


def _lower(one: Graded) -> str:
    return f"{_scores(one)}: lower, and more than chance"


def _unknown(one: Graded) -> str:
    return f"{_scores(one)}: lower, but by so little that it may be chance; more cases would tell"


def _scores(one: Graded) -> str:
    moved = f"{len(one.fell)} fell, {len(one.rose)} rose"
    return f"mean {one.check} of {one.cases} cases {one.before:.4f} → {one.now:.4f} ({moved})"


def _other_output(results: Iterable[CaseResult], old: Mapping[str, BlessedCase]) -> Iterable[str]:
    for one in results:
        before = old.get(one.id)
        same_case = before is not None and before.digest == one.digest and before.passed == one.passed
        if before is not None and same_case and before.output_digest != one.output_digest:
            yield one.id


def _notes(run: Run, baseline: Baseline | None, graded: Sequence[Graded], new: Sequence[str]) -> Iterable[str]:
    if baseline is None:
        return
    for task in sorted(baseline.models.keys() | run.models.keys()):
        was, now = baseline.models.get(task, "none"), run.models.get(task, "none")
        if was != now:
            yield f"model of task {task!r}: was {was}, is {now}"
    if new:
        yield f"not in the baseline yet: {listed(new)}; {BLESS}"
    added = sorted(run.fixtures.keys() - baseline.fixtures.keys())
    if added:
        yield f"new fixtures: {some(added)}"
    for one in graded:
        if one.judged == "same" and (one.fell or one.rose):
            yield f"{_scores(one)}: not lower"
        elif one.judged == "unknown":
            yield _unknown(one)
