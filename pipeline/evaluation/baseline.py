"""The baseline of a suite: what every case gave when a person last blessed it, committed beside the cases.

suite → run → gate (against the baseline) → report; `ctxpipe eval bless` alone writes it. One case a line, so that a
review shows which cases moved and how; ASCII only, so that an output can't hide in invisible characters.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from pipeline.core.section import ConfigPart
from pipeline.evaluation.values import CaseResult, CheckResult, Kind, Run
from pipeline.guard.errors import HarnessError

FILE = "baseline.json"
OUTPUT_CHARACTERS_MAX = 2000
"""Of an output as JSON; of longer ones the beginning is kept, for people; the digest is of the whole."""
GRADED_CHECKS = frozenset({"recall", "ndcg"})
"""Checks that measure: lower than before and still above the floor is judged by statistics."""
BLESS_AGAIN = "run `ctxpipe eval bless` again, so that the baseline is what one run gave"

Sha256 = Field(pattern=r"^[0-9a-f]{64}$")


class BlessedCase(ConfigPart):
    """What a case gave. `output` is cut where `characters` is set: then it is the beginning of its JSON, as text."""

    id: str
    kind: Kind
    group: str
    digest: str = Sha256
    passed: bool
    output_digest: str = Sha256
    output: Any = None
    characters: int | None = Field(default=None, description="of the whole output, where it is cut")
    scores: dict[str, float] = Field(default_factory=dict, description="of graded checks")
    measures: dict[str, float | None] = Field(default_factory=dict)


class Blessing(ConfigPart):
    """One move of the baseline: who, when (UTC), why, and what it then was. `scores`: mean score by kind, 0 to 1."""

    date: str = Field(pattern=r"^\d{4}-\d{2}-\d{2}$")
    by: str
    reason: str = Field(min_length=1)
    cases: int = Field(ge=0)
    passed: int = Field(ge=0)
    suite_digest: str = Sha256
    digest: str = Sha256
    moved: tuple[str, ...] = Field(default=(), description="what this blessing changed, a line each")
    scores: dict[str, float] = Field(default_factory=dict)
    latency_ms: dict[str, float] = Field(default_factory=dict, description="mean by kind, of the virtual clock")


class Baseline(ConfigPart):
    """`fixtures`: sha256 by file. `digest`: of the run's results."""

    version: Literal[1] = 1
    suite: str
    suite_digest: str = Sha256
    digest: str = Sha256
    flow: str = ""
    models: dict[str, str] = Field(default_factory=dict)
    history: tuple[Blessing, ...] = Field(min_length=1)
    fixtures: dict[str, str] = Field(default_factory=dict)
    cases: tuple[BlessedCase, ...] = ()

    @property
    def by_id(self) -> dict[str, BlessedCase]:
        return {case.id: case for case in self.cases}


def blessed(
    run: Run, suite_digest: str, before: Baseline | None, *, reason: str, by: str, date: str, moved: Sequence[str] = ()
) -> Baseline:
    """What `run` makes the baseline. The caller has made sure that it is whole and that its failures are accepted."""
    cases = tuple(blessed_case(result) for result in sorted(run.results, key=lambda result: result.id))
    entry = Blessing(
        date=date,
        by=by,
        reason=reason,
        cases=len(cases),
        passed=sum(case.passed for case in cases),
        suite_digest=suite_digest,
        digest=run.digest,
        moved=tuple(moved),
        scores=mean_by_kind(run.results, "score"),
        latency_ms=mean_by_kind(run.results, "latency_ms"),
    )
    return Baseline(
        suite=run.suite,
        suite_digest=suite_digest,
        digest=run.digest,
        flow=run.flow,
        models=dict(run.models),
        history=(*(before.history if before else ()), entry),
        fixtures=dict(run.fixtures),
        cases=cases,
    )


def blessed_case(result: CaseResult) -> BlessedCase:
    text = _json(result.output)
    cut = len(text) > OUTPUT_CHARACTERS_MAX
    return BlessedCase(
        id=result.id,
        kind=result.kind,
        group=result.group,
        digest=result.digest,
        passed=result.passed,
        output_digest=result.output_digest,
        output=text[:OUTPUT_CHARACTERS_MAX] if cut else result.output,
        characters=len(text) if cut else None,
        scores=graded_scores(result.checks),
        measures=dict(result.measures),
    )


def graded_scores(checks: Sequence[CheckResult]) -> dict[str, float]:
    """By the check's name; further ones of one name have their number behind it: recall, recall#2."""
    found: dict[str, float] = {}
    for check in checks:
        if check.check in GRADED_CHECKS:
            same = sum(name.partition("#")[0] == check.check for name in found)
            found[f"{check.check}#{same + 1}" if same else check.check] = check.score
    return found


def mean_by_kind(results: Iterable[CaseResult], measure: str) -> dict[str, float]:
    """Of those results that have the measure."""
    values: defaultdict[str, list[float]] = defaultdict(list)
    for result in results:
        value = result.measures.get(measure)
        if value is not None:
            values[result.kind].append(value)
    return {kind: sum(found) / len(found) for kind, found in sorted(values.items())}


def baseline_text(baseline: Baseline) -> str:
    """The file: the same baseline gives the same bytes; the seal is of all lines above it."""
    values = baseline.model_dump(mode="json", exclude_defaults=True)
    head = [f'"{name}": {_json(values[name])},' for name in ("suite", "suite_digest", "digest", "flow", "models")
            if name in values]  # fmt: skip
    lines = [
        "{",
        '"version": 1,',
        *head,
        '"history": [',
        *_separated(_json(entry) for entry in values["history"]),
        "],",
        '"fixtures": {',
        *_separated(f"{_json(file)}: {_json(sha256)}" for file, sha256 in sorted(baseline.fixtures.items())),
        "},",
        '"cases": [',
        *_separated(_json(case.model_dump(mode="json", exclude_defaults=True)) for case in baseline.cases),
        "],",
    ]
    sealed = "".join(f"{line}\n" for line in lines)
    return f'{sealed}"seal": "{_sha256(sealed)}"\n}}\n'


def read_baseline(file: Path, *, sealed: bool = True) -> Baseline | None:
    """None where there is no such file. Raises HarnessError for one that `ctxpipe eval bless` did not write so;
    without `sealed` only for one that can't be read: its history lives on in the next one."""
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise HarnessError(f"{file}: can't be read: {error}") from error
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise HarnessError(_not_json(file, text, error)) from error
    above, mark, _ = text.rpartition('"seal": "')
    seal = values.pop("seal", None) if isinstance(values, dict) else None
    if sealed and (not mark or seal != _sha256(above)):
        raise HarnessError(f"{file}: was changed by hand or by a merge; {BLESS_AGAIN}")
    try:
        return Baseline.model_validate(values)
    except ValidationError as error:
        told = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()[:5])
        raise HarnessError(f"{file}: is no baseline of this version of ctxpipe ({told}); {BLESS_AGAIN}") from error


def write_baseline(file: Path, baseline: Baseline) -> None:
    """Whole or not at all. Raises HarnessError."""
    beside = file.with_name(f".{file.name}.new")
    try:
        beside.write_text(baseline_text(baseline), encoding="utf-8")
        beside.replace(file)
    except OSError as error:
        raise HarnessError(f"{file}: can't be written: {error.strerror or error}") from error


def moves(before: Baseline | None, run: Run) -> list[str]:
    """What blessing `run` would change, a line each, most important first. None: nothing."""
    if before is None:
        return [f"first baseline: {len(run.results)} cases"]
    old, new = before.by_id, {result.id: result for result in run.results}
    both = sorted(old.keys() & new.keys())
    groups = {
        "now fail": [name for name in both if old[name].passed and not new[name].passed],
        "now pass": [name for name in both if new[name].passed and not old[name].passed],
        "are gone": sorted(old.keys() - new.keys()),
        "are new": sorted(new.keys() - old.keys()),
        "were rewritten": [name for name in both if old[name].digest != new[name].digest],
        "have another output": [
            name
            for name in both
            if old[name].output_digest != new[name].output_digest and old[name].digest == new[name].digest
        ],
    }
    told = [f"{len(names)} {what}: {some(names)}" for what, names in groups.items() if names]
    files = changed_fixtures(before.fixtures, run.fixtures)
    return [*told, *([f"{len(files)} fixtures changed: {some(files)}"] if files else [])]


def changed_fixtures(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Files that are changed, new or gone."""
    return sorted(file for file in before.keys() | now.keys() if before.get(file) != now.get(file))


def some(names: Sequence[str], most: int = 5) -> str:
    """The first few, and how many more."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _not_json(file: Path, text: str, error: Exception) -> str:
    for number, line in enumerate(text.splitlines(), start=1):
        if line.startswith(("<<<<<<<", ">>>>>>>")):
            return f"{file}:{number}: holds a merge that was not resolved; take either side, then {BLESS_AGAIN}"
    at = f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
    return f"{file}{at}: is no JSON ({error}); restore it from version control, or {BLESS_AGAIN}"


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=True, allow_nan=False, separators=(",", ":"))


def _separated(lines: Iterable[str]) -> list[str]:
    found = list(lines)
    return [f"{line}," for line in found[:-1]] + found[-1:]


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
