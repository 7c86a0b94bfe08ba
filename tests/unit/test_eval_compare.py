"""`ctxpipe eval compare`: two runs, or pairs of shadow traffic → a verdict, its figures, evidence, and exit codes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pipeline.cli import run
from pipeline.evaluation.compare import Comparison, compare_paired, evidence_of
from pipeline.evaluation.results_file import run_digest, write_results
from pipeline.evaluation.statistics.limits import AskedLimit
from pipeline.evaluation.statistics.matching import CompareError
from pipeline.evaluation.statistics.page import page
from pipeline.evaluation.statistics.sides import Side, side_of_run, sides_of_pairs, task_of
from pipeline.evaluation.values import CaseResult, CheckResult, Run
from pipeline.guard.evidence import Compared, Evidence
from pipeline.guard.routing.config import Demands, EvidenceFile, TaskRouting
from pipeline.guard.routing.deciding import Refusal, Wanted, decide
from pipeline.guard.routing.pairs import Pair
from pipeline.guard.routing.pairs import Side as Answer
from pipeline.guard.routing.state import Identity

SUITE_DIGEST = "5" * 64


def result(name: int, score: float, **changes: Any) -> CaseResult:
    measures = {"score": score, "latency_ms": 100.0, "cost": 0.01, "malformed": 0.0}
    return CaseResult(
        id=changes.pop("id", f"case-{name:04}"),
        kind=changes.pop("kind", "output"),
        group=changes.pop("group", f"tenant-{name // 2}"),
        tags=(),
        digest=changes.pop("digest", hashlib.sha256(str(name).encode()).hexdigest()),
        passed=changes.pop("passed", score == 1),
        checks=changes.pop("checks", (CheckResult(check="number", passed=score == 1, score=score),)),
        output={"score": score},
        output_digest=hashlib.sha256(repr(score).encode()).hexdigest(),
        measures={**measures, **changes},
    )


def results(scores: Sequence[float], **changes: Any) -> list[CaseResult]:
    return [result(number, score, **changes) for number, score in enumerate(scores)]


# 200 cases of 100 tenants
ACTIVE = [0.0] * 60 + [1.0] * 140
BETTER = [1.0] * 50 + [0.0] * 10 + [1.0] * 135 + [0.0] * 5
SLIGHTLY = [1.0] * 6 + [0.0] * 54 + [0.0] * 3 + [1.0] * 137


@pytest.mark.parametrize(
    ("candidate", "options", "verdict", "code"),
    [
        (BETTER, {}, "better", 0),
        (BETTER, {"claim_points": 5.0}, "better", 0),
        (BETTER, {"claim_points": 40.0}, "not_better", 1),
        (SLIGHTLY, {}, "inconclusive", 2),
        (SLIGHTLY, {"worth_points": 10.0}, "not_better", 1),
        (ACTIVE, {}, "inconclusive", 2),
        (ACTIVE, {"claim_points": 6.0}, "not_better", 1),
        ([1 - one for one in BETTER], {}, "not_better", 1),
        (BETTER, {"method": "sequence"}, "better", 0),
        (BETTER, {"method": "bootstrap"}, "better", 0),
        (BETTER, {"metric": "passed"}, "better", 0),
        (BETTER, {"metric": "check:number"}, "better", 0),
    ],
)
def test_verdicts_and_exit_codes(candidate: Sequence[float], options: dict[str, Any], verdict: str, code: int) -> None:
    found = compare_paired(results(ACTIVE), results(candidate), **options)
    assert (found.verdict, found.exit_code) == (verdict, code)
    assert found.better + found.worse + found.ties == found.pairs == 200
    assert found.low <= found.difference <= found.high
    assert found.passed is (code == 0)


def test_a_comparison_is_the_same_each_time_and_in_any_order() -> None:
    first = compare_paired(results(ACTIVE), results(BETTER))
    assert compare_paired(results(ACTIVE)[::-1], results(BETTER)[::-1]) == first


def test_a_candidate_that_is_better_but_slower_or_worse_formed_does_not_pass() -> None:
    slower = results(BETTER, latency_ms=180.0)
    limits = [AskedLimit(measure="latency_ms", limit=50), AskedLimit(measure="cost", limit=0.1, relative=True)]
    found = compare_paired(results(ACTIVE), slower, limits=limits)
    assert (found.verdict, found.passed, found.broken, found.exit_code) == ("better", False, ("latency_ms",), 1)
    assert [limit.passed for limit in found.limits] == [False, True]
    assert "not shown to keep its limit of latency_ms" in found.why
    roomy = compare_paired(results(ACTIVE), slower, limits=[AskedLimit(measure="latency_ms", limit=80)])
    assert roomy.exit_code == 0


def test_a_relative_limit_is_of_the_mean_of_the_active() -> None:
    dearer = [dataclasses.replace(one, measures={**one.measures, "cost": 0.0115}) for one in results(BETTER)]
    found = compare_paired(results(ACTIVE), dearer, limits=[AskedLimit(measure="cost", limit=0.2, relative=True)])
    (limit,) = found.limits
    assert limit.limit == pytest.approx(0.002)
    assert (limit.observed, limit.bound) == (pytest.approx(0.0015), pytest.approx(0.0015))
    assert limit.passed
    found = compare_paired(results(ACTIVE), dearer, limits=[AskedLimit(measure="cost", limit=0.1, relative=True)])
    assert found.broken == ("cost",)


def test_a_limit_that_few_groups_can_not_show_is_not_kept() -> None:
    """None was malformed on either side, but 100 groups without one allow up to 3 of 100."""
    for limit, code in ((0.01, 2), (0.03, 0)):
        asked = [AskedLimit(measure="malformed", limit=limit)]
        found = compare_paired(results(ACTIVE), results(BETTER), limits=asked)
        assert found.exit_code == code, found.limits
        assert found.limits[0].bound == pytest.approx(1 - 0.05 ** (1 / 100))


def test_a_cost_that_nobody_knows_keeps_no_limit() -> None:
    unknown = results(BETTER)
    unknown[3] = result(3, BETTER[3], cost=None)
    found = compare_paired(results(ACTIVE), unknown, limits=[AskedLimit(measure="cost", limit=10)])
    assert (found.limits[0].observed, found.limits[0].passed, found.exit_code) == (None, False, 2)
    assert "cost is unknown in 1 of 200 pairs" in found.notes[0]


def test_a_kind_that_became_worse_is_told_although_all_together_is_better() -> None:
    kinds = ["replay"] * 20 + ["output"] * 180
    active = [result(number, 1.0 if number < 20 else 0.0, kind=kinds[number]) for number in range(200)]
    candidate = [result(number, 0.0 if number < 20 else 1.0, kind=kinds[number]) for number in range(200)]
    found = compare_paired(active, candidate)
    assert found.verdict == "better"
    assert [(one.kind, one.worse) for one in found.slices] == [("output", False), ("replay", True)]
    assert found.notes[0].startswith("worse in replay: -100.00 points in 20 pairs")
    assert found.changed[0].kind == "replay"


@pytest.mark.parametrize(
    ("active", "candidate", "options", "told"),
    [
        ([], results(BETTER), {}, "A has no results"),
        (results(ACTIVE), [], {}, "B has no results"),
        (results(ACTIVE), results(BETTER)[:150], {}, "50 of 200 cases are in one run only: case-0150"),
        (results(ACTIVE), [*results(BETTER), result(7, 1.0)], {}, "B has case-0007 more than once"),
        (
            results(ACTIVE),
            [result(0, 1, digest="0" * 64), *results(BETTER)[1:]],
            {},
            "case-0000 are not the same cases",
        ),
        (results(ACTIVE), [result(0, math.nan), *results(BETTER)[1:]], {}, r"case-0000 in B \(nan\)"),
        (results(ACTIVE), [result(0, 3.0), *results(BETTER)[1:]], {}, r"case-0000 in B \(3\)"),
        (results(ACTIVE), results(BETTER), {"metric": "scor"}, r"'scor' has to be .* have .*passed.*score"),
        (results(ACTIVE), results(BETTER), {"metric": "latency_ms"}, r"from 0 to 1 in every case.*and 390 more"),
        (results(ACTIVE), results(BETTER), {"method": "mcnemar"}, "200 are of 100 groups: take sign_flip"),
        (results(ACTIVE), results(BETTER), {"method": "sign_flip", "claim_points": 4.0}, "claim 'better' only"),
        (results([0.5] * 200), results(BETTER), {"method": "mcnemar"}, "these are scores"),
    ],
)
def test_what_can_not_be_compared_is_told(
    active: list[CaseResult], candidate: list[CaseResult], options: dict[str, Any], told: str
) -> None:
    with pytest.raises(CompareError, match=told):
        compare_paired(active, candidate, **options)


def test_all_that_is_wrong_with_two_runs_is_told_at_once() -> None:
    other = [result(number, 1.0, digest="0" * 64) for number in range(3)]
    with pytest.raises(CompareError) as error:
        compare_paired([*results(ACTIVE), result(5, 1.0)], [*other, *results(BETTER)[3:]])
    assert len(error.value.mistakes) == 2


def test_one_case_that_is_missing_is_told_and_left_out() -> None:
    found = compare_paired(results(ACTIVE), results(BETTER)[1:])
    assert (found.pairs, found.unpaired) == (199, ("case-0000",))
    assert "case-0000" in found.notes[0]


def test_a_metric_of_one_check_is_of_the_cases_that_have_it() -> None:
    recall = (CheckResult(check="recall", passed=True, score=0.5),)
    better = (CheckResult(check="recall", passed=True, score=1.0),)
    active = [*results(ACTIVE)[:100], *(result(number, 1.0, checks=recall) for number in range(100, 140))]
    candidate = [*results(BETTER)[:100], *(result(number, 1.0, checks=better) for number in range(100, 140))]
    found = compare_paired(active, candidate, metric="check:recall")
    assert (found.pairs, found.difference, found.verdict) == (40, 50.0, "better")
    with pytest.raises(CompareError, match="no case has a check 'recal'; there are number, recall"):
        compare_paired(active, candidate, metric="check:recal")


def test_one_group_says_nothing() -> None:
    found = compare_paired(results(ACTIVE, group="all"), results([1.0] * 200, group="all"))
    assert (found.verdict, found.groups) == ("inconclusive", 1)
    assert "1 group(s) only, and at least 5 are needed" in found.why
    by_case = compare_paired(results(ACTIVE, group="all"), results([1.0] * 200, group="all"), group=lambda one: one.id)
    assert by_case.verdict == "better"
    assert by_case.method == "sign_flip" or by_case.method == "mcnemar"


def compared(endpoint: str, digest: str = "a" * 64) -> Compared:
    return Compared(endpoint=endpoint, model=f"{endpoint}-model", revision="1", results_sha256=digest)


def evidence(found: Comparison) -> Evidence:
    return evidence_of(
        found,
        task="rebook",
        suite="flights",
        suite_digest=SUITE_DIGEST,
        active=compared("large", "a" * 64),
        candidate=compared("small", "b" * 64),
        made_on="2026-11-30",
    )


@pytest.mark.parametrize(("candidate", "accepted"), [(BETTER, True), (SLIGHTLY, False), (ACTIVE, False)])
def test_the_loader_of_the_routing_file_takes_evidence_of_what_is_better_only(
    candidate: Sequence[float], accepted: bool
) -> None:
    made = evidence(compare_paired(results(ACTIVE), results(candidate)))
    read = Evidence.model_validate_json(made.model_dump_json())
    assert read == made
    identity = {side: Identity(endpoint=side, model=f"{side}-model", revision="1") for side in ("large", "small")}
    routing = TaskRouting(active="small", previous="large", evidence=EvidenceFile(file="e.json", sha256="c" * 64))
    wanted = Wanted("rebook", routing, identity["small"], identity["large"], "large")
    decided = decide(wanted, None, read, Demands(suite_digest=SUITE_DIGEST, pairs_min=200))
    assert (not isinstance(decided, Refusal)) is accepted


def run_of(results: Sequence[CaseResult], model: str, **changes: Any) -> Run:
    values: dict[str, Any] = {
        "suite": "flights",
        "suite_digest": SUITE_DIGEST,
        "digest": run_digest(results),
        "flow": "mine:flow",
        "models": {"estimate": "large gpt-4o", "rebook": model},
        "fixtures": {},
        "results": tuple(results),
    }
    return Run(**{**values, **changes})


Written = Callable[..., str]


@pytest.fixture
def written(tmp_path: Path) -> Written:
    def write(name: str, scores: Sequence[float], model: str = "large gpt-4o 2026-10-01", **changes: Any) -> str:
        path = tmp_path / name
        write_results(run_of(results(scores), model, **changes), path)
        return str(path)

    return write


def output(capsys: pytest.CaptureFixture[str]) -> Mapping[str, Any]:
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert isinstance(found, dict)
    return found


def test_the_command_compares_two_files_and_writes_evidence(
    written: Written, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = written("a.jsonl", ACTIVE), written("b.jsonl", BETTER, "small tiny r2")
    file, html = tmp_path / "evidence" / "rebook.json", tmp_path / "page.html"
    words = ["eval", "compare", a, b, "--claim", "points:5", "--limit", "latency_ms:+50", "--limit", "cost:+10%"]
    assert run([*words, "--evidence", str(file), "--html", str(html), "--json"]) == 0
    told = output(capsys)
    assert told["verdict"] == "better"
    assert told["evidence"]["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    made = Evidence.model_validate_json(file.read_bytes())
    assert (made.task, made.candidate.endpoint, made.candidate.model, made.candidate.revision) == (
        "rebook",
        "small",
        "tiny",
        "r2",
    )
    assert made.active.results_sha256 == hashlib.sha256(Path(a).read_bytes()).hexdigest()
    assert (made.suite_digest, made.pairs, made.groups, made.passed) == (SUITE_DIGEST, 200, 100, True)
    assert "better" in html.read_text()


def test_the_command_tells_people_the_plan_first_and_the_verdict_last(
    written: Written, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = written("a.jsonl", ACTIVE), written("b.jsonl", BETTER, "small tiny")
    assert run(["eval", "compare", a, b, "--plan", "effect=4,discordant=0.15"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == 'claim "better": to show a true gain of 4 points with 80% power, at 5%, it takes'
    assert "621 pairs if 15% of pairs differ" in lines[1]
    assert lines[-1].startswith("the candidate is better: score +22.50 points")
    assert any("pairs      200 in 100 groups: 50 better, 5 worse, 145 the same" in line for line in lines), lines


@pytest.mark.parametrize(("scores", "code"), [(SLIGHTLY, 2), (ACTIVE, 2), ([0.0] * 200, 1)])
def test_the_exit_code_says_what_pairs_said(
    scores: Sequence[float], code: int, written: Written, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "e.json"
    words = ["eval", "compare", written("a", ACTIVE), written("b", scores, "small tiny"), "--evidence", str(file)]
    assert run(words) == code
    assert "NOT passed" in capsys.readouterr().out
    assert Evidence.model_validate_json(file.read_bytes()).passed is False


def test_a_plan_alone_needs_no_results(written: Written, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["eval", "compare", "--plan", "effect=4"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 6
    assert run(["eval", "compare", written("a", ACTIVE), "--plan", "effect=4,sd=0.2"]) == 0
    assert "has 200 cases in 100 groups" in capsys.readouterr().out


BROKEN = b'{"format":"ctxpipe-eval-results","version":1}\n'


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "name A and B"),
        (["{a}"], "B is missing"),
        (["{a}", "{b}", "--pairs", "x"], "--pairs stands instead"),
        (["{a}", "{b}", "--every", "3"], "--every goes with --pairs and --sequence"),
        (["{a}", "{b}", "--sequence", "--method", "mcnemar"], "--sequence is a method of its own"),
        (["{a}", "{b}", "--claim", "4"], "write better, or points:4"),
        (["{a}", "{b}", "--claim", "points:nan"], "write better, or points:4"),
        (["{a}", "{b}", "--limit", "latency"], "--limit latency: write MEASURE"),
        (["{a}", "{b}", "--limit", "score:+1"], "of score more is better"),
        (["{a}", "{b}", "--limit", "cost:+1", "--limit", "cost:+2%"], "cost has two limits"),
        (["{a}", "{b}", "--plan", "effect=4,sd=x"], "'sd=x' is not understood"),
        (["{a}", "{b}", "--plan", "sd=0.2"], "effect=POINTS is missing"),
        (["{a}", "{b}", "--plan", "effect=4,discordant=0.01"], "discordant=0.01 has to be from effect/100"),
        (["{a}", "{b}", "--model", "C=small"], "write A=ENDPOINT"),
        (["{a}", "{b}", "--model", "B=small"], "is no folder of a suite"),
        (["{a}", "{other}"], "A is of the suite 'flights', B of 'films'"),
        (["{a}", "{changed}"], "two states of the suite 'flights'"),
        (["{a}", "{harness}"], "decides nothing: 1 cases could not be run case x: no recording"),
        (["{a}", "{empty}"], "the file is empty"),
        (["{a}", "{broken}"], "is missing; the file is damaged"),
        (["{a}", "nowhere.jsonl"], "does not exist"),
        (["{a}", "{a}", "--evidence", "{tmp}/e.json"], "A and B ask the same models"),
        (["{a}", "{two}", "--evidence", "{tmp}/e.json"], "differ in the models of 2 tasks (estimate, rebook)"),
        (["{a}", "{b}", "--task", "rebok", "--evidence", "{tmp}/e.json"], "there is no task 'rebok'"),
        (["{a}", "{b}", "--task", "estimate", "--evidence", "{tmp}/e.json"], "the same model for the task 'estimate'"),
        (["{a}", "{flow}", "--evidence", "{tmp}/e.json"], "A ran the flow 'mine:flow', B 'mine:other'"),
        (["{a}", "{spaces}", "--evidence", "{tmp}/e.json"], "can't be read from the results"),
    ],
)
def test_mistakes_of_the_command_line_and_of_files(
    words: list[str], told: str, written: Written, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "broken").write_bytes(BROKEN)
    places = {
        "a": written("a.jsonl", ACTIVE),
        "b": written("b.jsonl", BETTER, "small tiny"),
        "other": written("other.jsonl", BETTER, suite="films"),
        "changed": written("changed.jsonl", BETTER, suite_digest="6" * 64),
        "harness": written("harness.jsonl", BETTER, harness=("case x: no recording",)),
        "two": written("two.jsonl", BETTER, models={"estimate": "small tiny", "rebook": "small tiny"}),
        "flow": written("flow.jsonl", BETTER, "small tiny", flow="mine:other"),
        "spaces": written("spaces.jsonl", BETTER, "a model of many words"),
        "empty": str(tmp_path / "empty"),
        "broken": str(tmp_path / "broken"),
        "tmp": str(tmp_path),
    }
    assert run(["eval", "compare", *(word.format(**places) for word in words)]) == 3
    captured = capsys.readouterr()
    assert told in " ".join(captured.err.split()), captured.err
    assert "Traceback" not in captured.err
    assert not (tmp_path / "e.json").exists()


def answer(endpoint: str, score: float, **changes: Any) -> Answer:
    values: dict[str, Any] = {
        "endpoint": endpoint,
        "model": f"{endpoint}-model",
        "revision": "",
        "output": {"seat": "any"},
        "reason": "",
        "raw": "",
        "latency_ms": 20.0,
        "cost": 0.001,
        "malformed": False,
        "tokens": 5,
        "scores": {"score": score},
    }
    return Answer(**{**values, **changes})


def shadow(number: int, active: float, score: float, by: str = "small", **changes: Any) -> Pair:
    values: dict[str, Any] = {
        "key": hashlib.sha256(str(number).encode()).hexdigest()[:32],
        "task": "rebook",
        "group": f"passenger-{number}",
        "at_us": 1_000_000 * number,
        "share": 0.1,
        "active": answer("large", active),
        "candidate": answer(by, score),
    }
    return Pair(**{**values, **changes})


def write_pairs(path: Path, pairs: Sequence[Pair]) -> None:
    path.write_bytes(b"".join(msgspec.json.encode(pair) + b"\n" for pair in pairs))


GOOD = [shadow(number, 0.0 if number % 3 else 1.0, 1.0) for number in range(120)]


def test_pairs_of_shadow_traffic_give_evidence_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, made = tmp_path / "pairs.jsonl", tmp_path / "e.json"
    write_pairs(file, GOOD)
    words = ["eval", "compare", "--pairs", str(file), "--json", "--evidence", str(made)]
    assert run(words) == 0
    assert output(capsys)["method"] == "mcnemar"
    found = Evidence.model_validate_json(made.read_bytes())
    assert (found.task, found.suite, found.pairs) == ("rebook", "shadow:rebook", 120)
    assert found.active.results_sha256 != found.candidate.results_sha256
    assert run([*words, "--sequence"]) == 0
    assert output(capsys)["method"] == "sequence"


def test_watching_waits_for_the_file_and_stops_when_it_is_sure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, came = tmp_path / "pairs.jsonl", iter(range(1, 50))
    monkeypatch.setattr("time.sleep", lambda seconds: write_pairs(file, GOOD[: 4 * next(came)]))
    assert run(["eval", "compare", "--pairs", str(file), "--sequence", "--every", "0.1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "has no pairs yet; waiting" in lines[0]
    assert lines[1].startswith("4 pairs counted in 4 groups")
    assert 2 <= next(came) < 40
    assert lines[-1].startswith("the candidate is better")


def test_pairs_of_a_model_that_was_tried_before_are_left_out() -> None:
    before = [shadow(number, 1.0, 0.0, by="older") for number in range(30)]
    a, b = sides_of_pairs([*before, *GOOD[30:]], "pairs.jsonl", None)
    assert (len(a.results), a.left_out, b.models["rebook"].endpoint) == (90, 30, "small")


@pytest.mark.parametrize(
    ("pairs", "task", "told"),
    [
        ([], None, "has no pairs yet"),
        ([shadow(1, 1, 1), shadow(2, 1, 1, task="estimate")], None, r"2 tasks \(estimate, rebook\); choose one"),
        (GOOD, "rebok", "no pairs of the task 'rebok', only of rebook"),
    ],
)
def test_pairs_that_can_not_be_compared(pairs: list[Pair], task: str | None, told: str) -> None:
    with pytest.raises(CompareError, match=told):
        sides_of_pairs(pairs, "pairs.jsonl", task)


def side(name: Any, scores: Sequence[float], model: str, **changes: Any) -> Side:
    return side_of_run(name, f"{name}.jsonl", run_of(results(scores, **changes), model), "a" * 64)


def test_the_page_shows_hostile_names_as_text() -> None:
    hostile = "<script>alert(1)</script>\u202e"
    a, b = side("A", ACTIVE, "large gpt", group=hostile), side("B", BETTER, f"{hostile} tiny", group=hostile)
    found = compare_paired(a.results, b.results, group=lambda one: one.id)
    text = page(found, a, b)
    assert "<script" not in text and "\u202e" not in text
    assert "&lt;script&gt;" in text
    assert "default-src 'none'" in text
    assert len(re.findall(r"<circle class=\"bar\"", text)) == 2, "all pairs, and the one kind"


def test_the_task_that_differs_is_found() -> None:
    a, b = side("A", ACTIVE, "large gpt"), side("B", BETTER, "small tiny")
    assert task_of(a, b, None) == "rebook"
    assert task_of(a, b, "rebook") == "rebook"
