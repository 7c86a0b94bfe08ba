"""The baseline: one line a case, the same bytes for the same run, and nobody's hand or merge in it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluation.baseline import (
    OUTPUT_CHARACTERS_MAX,
    Baseline,
    baseline_text,
    blessed,
    graded_scores,
    moves,
    read_baseline,
    write_baseline,
)
from pipeline.evaluation.values import CheckResult, Run
from pipeline.guard.errors import HarnessError
from tests.support.eval_results import result, run_of, sha

SUITE = sha("suite")


def made(run: Run, before: Baseline | None = None, reason: str = "first") -> Baseline:
    return blessed(run, SUITE, before, reason=reason, by="Ada", date="2026-11-30", moved=moves(before, run))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    run = run_of([result("b", scores={"recall": 0.1 + 0.2}), result("a", passed=False, output=["\u202e", "\ud800"])])
    baseline = made(run)
    write_baseline(tmp_path / "baseline.json", baseline)
    assert read_baseline(tmp_path / "baseline.json") == baseline
    assert [case.id for case in baseline.cases] == ["a", "b"]
    assert baseline.by_id["b"].scores == {"recall": 0.1 + 0.2}
    text = (tmp_path / "baseline.json").read_text()
    assert text.isascii(), "an output could hide in what a reviewer can't see"
    assert list(tmp_path.iterdir()) == [tmp_path / "baseline.json"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(outputs=st.lists(JSON, min_size=1, max_size=4), reason=st.text(min_size=1))
def test_any_output_comes_back_the_same(outputs: list[Any], reason: str, tmp_path_factory: Any) -> None:
    file = tmp_path_factory.mktemp("baseline") / "baseline.json"
    baseline = made(run_of([result(f"c{number}", output=one) for number, one in enumerate(outputs)]), reason=reason)
    write_baseline(file, baseline)
    read = read_baseline(file)
    assert read is not None
    assert baseline_text(read) == baseline_text(baseline)


def test_the_order_of_results_does_not_show() -> None:
    results = [result(name) for name in ("c", "a", "b")]
    assert baseline_text(made(run_of(results))).split('"cases": [')[1].count("\n") == 7
    one, other = made(run_of(results)), made(run_of(results[::-1]))
    assert one.cases == other.cases


def test_a_moved_case_is_one_changed_line_and_its_history() -> None:
    before = made(run_of([result("a"), result("b"), result("c")]))
    after = made(run_of([result("a"), result("b", output={"answer": 2}), result("c")]), before, "another prompt")
    old, new = baseline_text(before).splitlines(), baseline_text(after).splitlines()
    changed = [line for line in new if line not in old]
    assert sum('"id":"b"' in line for line in changed) == 1
    assert [line for line in changed if '"id":"a"' in line or '"id":"c"' in line] == []
    assert [entry.reason for entry in after.history] == ["first", "another prompt"]
    assert after.history[-1].moved == ("1 have another output: b",)


def test_a_long_output_is_cut_and_says_so() -> None:
    case = made(run_of([result("a", output="x" * 10_000)])).cases[0]
    assert case.characters == 10_002
    assert len(case.output) == OUTPUT_CHARACTERS_MAX


def test_no_baseline_is_none(tmp_path: Path) -> None:
    assert read_baseline(tmp_path / "baseline.json") is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text.replace('"passed":true', '"passed":false'), "changed by hand or by a merge"),
        (lambda text: text.replace("first", "better"), "changed by hand or by a merge"),
        (lambda text: text.replace('"seal"', '"seel"'), "changed by hand or by a merge"),
        (
            lambda text: text.replace('"cases": [', '<<<<<<< HEAD\n"cases": ['),
            ":14: holds a merge that was not resolved",
        ),
        (lambda text: text[:200], "is no JSON"),
        (lambda _: "", "is no JSON"),
        (lambda _: "[]", "changed by hand or by a merge"),
        (lambda _: "[" * 100_000, "is no JSON"),
    ],
)
def test_a_baseline_that_bless_did_not_write_is_refused(change: Any, said: str, tmp_path: Path) -> None:
    file = tmp_path / "baseline.json"
    file.write_text(change(baseline_text(made(run_of([result("a")])))))
    with pytest.raises(HarnessError, match=said) as caught:
        read_baseline(file)
    assert str(file) in str(caught.value)
    assert "ctxpipe eval bless" in str(caught.value)


def test_a_baseline_of_another_version_is_told(tmp_path: Path) -> None:
    file = tmp_path / "baseline.json"
    text = baseline_text(made(run_of([result("a")]))).replace('"version": 1', '"version": 2')
    sealed = text.rpartition('"seal": "')[0]
    file.write_text(f'{sealed}"seal": "{sha(sealed)}"\n}}\n')
    with pytest.raises(HarnessError, match="no baseline of this version"):
        read_baseline(file)


def test_a_folder_in_its_place_is_told(tmp_path: Path) -> None:
    (tmp_path / "baseline.json").mkdir()
    with pytest.raises(HarnessError, match="can't be read"):
        read_baseline(tmp_path / "baseline.json")
    with pytest.raises(HarnessError, match="can't be written"):
        write_baseline(tmp_path / "nowhere" / "baseline.json", made(run_of([result("a")])))


def test_graded_checks_of_one_name_keep_apart() -> None:
    checks = [
        CheckResult(check="recall", passed=True, score=0.5),
        CheckResult(check="equals", passed=True),
        CheckResult(check="recall", passed=True, score=0.25),
        CheckResult(check="ndcg", passed=True, score=1.0),
        CheckResult(check="recall", passed=True, score=0.75),
    ]
    assert graded_scores(checks) == {"recall": 0.5, "recall#2": 0.25, "ndcg": 1.0, "recall#3": 0.75}


def test_moves_name_everything_that_blessing_changes() -> None:
    before = made(run_of([result("a"), result("b", passed=False), result("gone"), result("other"), result("re")]))
    run = run_of(
        [
            result("a", passed=False),
            result("b"),
            result("new"),
            result("other", output=1),
            result("re", case="written otherwise"),
        ],
        fixtures={"events/a.jsonl": sha("b"), "events/new.jsonl": sha("n")},
    )
    assert moves(before, run) == [
        "1 now fail: a",
        "1 now pass: b",
        "1 are gone: gone",
        "1 are new: new",
        "1 were rewritten: re",
        "3 have another output: a, b, other",
        "2 fixtures changed: events/a.jsonl, events/new.jsonl",
    ]
    same = run_of([result("a")])
    assert moves(made(same), same) == []
    assert moves(None, same) == ["first baseline: 1 cases"]


def test_means_leave_out_what_was_not_measured() -> None:
    entry = made(run_of([result("a", latency_ms=2.0), result("b", passed=False, latency_ms=4.0)])).history[0]
    assert entry.latency_ms == {"output": 3.0}
    assert entry.scores == {"output": 0.5}
    assert (entry.cases, entry.passed, entry.by, entry.date) == (2, 1, "Ada", "2026-11-30")
    assert json.loads(baseline_text(made(run_of([result("a")]))))["cases"][0]["measures"]["cost"] is None
    with pytest.raises(ValueError, match="JSON"):
        baseline_text(made(run_of([result("a", latency_ms=math.nan)])))
