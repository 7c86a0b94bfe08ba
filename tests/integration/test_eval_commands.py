"""`ctxpipe eval run` and `bless` as a team uses them: a suite of its own, a flow that gets worse, and every mistake."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

import pytest

from pipeline.evaluation.results_file import read_results
from tests.support.cli import ROOT, Done, ctxpipe
from tests.support.eval_suite import CASES, FLOW, SmallSuite, case


@pytest.fixture
def suite(tmp_path: Path) -> SmallSuite:
    return SmallSuite(tmp_path)


@pytest.fixture(scope="module")
def first_baseline(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    suite = SmallSuite(tmp_path_factory.mktemp("first"))
    assert bless(suite).code == 0
    return suite.baseline.read_bytes()


@pytest.fixture
def blessed(suite: SmallSuite, first_baseline: bytes) -> SmallSuite:
    suite.baseline.write_bytes(first_baseline)
    return suite


def run(suite: SmallSuite, *words: str, **environment: str) -> Done:
    words = words if "--jobs" in words else (*words, "--jobs", "0")  # starting processes takes longer than the cases
    return ctxpipe("eval", "run", "evals", *words, folder=suite.home, **environment)


def bless(suite: SmallSuite, *words: str, reason: str = "as it stands") -> Done:
    return ctxpipe("eval", "bless", "evals", "--reason", reason, "--jobs", "0", *words, folder=suite.home)


def answer(done: Done) -> dict[str, Any]:
    found = json.loads(done.out.splitlines()[-1])
    assert isinstance(found, dict)
    return found


def test_from_nothing_to_a_gate(suite: SmallSuite) -> None:
    first = run(suite)
    assert first.code == 3
    assert "has no baseline" in first.out and "ctxpipe eval bless" in first.out
    assert run(suite, "--no-baseline").code == 0
    assert bless(suite, reason="the first one").code == 0
    done = run(suite, "--json")
    assert done.code == 0
    told = answer(done)
    assert (told["verdict"], told["cases"], told["passed"], told["failed"]) == ("pass", CASES, CASES, 0)
    assert len(done.out.splitlines()) == 1, "a program reads standard output"


def test_what_gets_worse_is_named_in_every_report(blessed: SmallSuite) -> None:
    blessed.break_flow()
    files = [
        "--junit",
        "r/junit.xml",
        "--markdown",
        "r/comment.md",
        "--html",
        "r/page.html",
        "--prometheus",
        "r/m.prom",
    ]
    done = run(blessed, *files, "--results", "r/results.jsonl")
    assert done.code == 1
    assert "orders: regression" in done.out
    assert "passed before, failing now: 2 cases (double/7, double/8)" in done.out
    assert '-   "answer": 14,' in done.out and '+   "answer": 15,' in done.out
    folder = blessed.home / "r"
    junit = Xml.parse(folder / "junit.xml").getroot()
    assert [one.get("name") for one in junit.iter("testcase") if len(one)] == ["double/7", "double/8"]
    for name in ("comment.md", "page.html"):
        text = (folder / name).read_text()
        assert "double/7" in text and "double/8" in text and "double/6" not in text
    assert 'ctxpipe_eval_verdict{suite="orders"} 1.0' in (folder / "m.prom").read_text()
    results = read_results(folder / "results.jsonl")
    assert [one.id for one in results.results if not one.passed] == ["double/7", "double/8"]
    assert sorted(path.name for path in folder.iterdir()) == [
        "comment.md",
        "junit.xml",
        "m.prom",
        "page.html",
        "results.jsonl",
    ]


def test_the_same_whatever_the_order_the_processes_and_the_hash_seed(blessed: SmallSuite) -> None:
    runs = [
        answer(run(blessed, "--json", *words, PYTHONHASHSEED=seed))
        for words, seed in (
            (("--jobs", "2"), "0"),
            (("--seed", "7", "--jobs", "0"), "1"),
            (("--seed", "8", "--jobs", "3"), "4242"),
        )
    ]
    assert len({(one["digest"], one["suite_digest"], one["verdict"]) for one in runs}) == 1


def test_a_case_that_is_gone_fails_and_a_new_one_has_to_pass(blessed: SmallSuite) -> None:
    cases = {number: case(number) for number in range(2, CASES + 2)}
    blessed.cases(cases)
    told = answer(run(blessed, "--json"))
    assert (told["verdict"], told["missing"], told["new"]) == ("regression", ["double/1"], ["double/9"])
    blessed.cases({1: case(1), **cases})
    assert run(blessed).code == 0
    blessed.cases({1: case(1), **cases, 9: case(9, answer=17)})
    told = answer(run(blessed, "--json"))
    assert (told["verdict"], told["new_failed"]) == ("regression", ["double/9"])


def test_what_it_is_judged_on_may_not_move_unseen(blessed: SmallSuite) -> None:
    blessed.write("prices.csv", "piece,3\n")
    changed = run(blessed)
    assert changed.code == 3
    assert "fixtures are not what was blessed: prices.csv (changed)" in changed.out
    blessed.write("prices.csv", "piece,2\n")
    blessed.cases({number: case(number, answer=4 if number == 1 else None) for number in range(1, CASES + 1)})
    rewritten = run(blessed)
    assert rewritten.code == 3
    assert "rewritten since they were blessed: 1 case (double/1)" in rewritten.out
    assert "expected 4, came 2" in rewritten.out


def test_a_part_says_nothing_of_the_whole(blessed: SmallSuite) -> None:
    before = blessed.baseline.read_bytes()
    told = answer(run(blessed, "--json", "--only", "double/1", "--only", "double/2"))
    assert (told["verdict"], told["cases"]) == ("partial", 2)
    blessed.break_flow()
    assert run(blessed, "--only", "double/7").code == 1
    assert run(blessed, "--only", "double/1").code == 0
    nothing = run(blessed, "--only", "duoble/1")
    assert nothing.code == 3
    assert "duoble/1" in nothing.out and "did you mean double/1" in nothing.out
    assert blessed.baseline.read_bytes() == before


def test_only_blessing_moves_the_baseline_and_only_with_a_reason(blessed: SmallSuite) -> None:
    before = blessed.baseline.read_text()
    assert bless(blessed, reason="  ").code == 3
    assert ctxpipe("eval", "bless", "evals", folder=blessed.home).code == 3
    again = bless(blessed, reason="once more")
    assert again.code == 0 and "nothing moved" in again.out
    assert blessed.baseline.read_text() == before, "byte for byte"
    blessed.flow(FLOW.replace("pieces", "boxes"))
    moved = bless(blessed, "--json", reason="boxes\nnow")
    assert answer(moved)["moved"] == [
        f"{CASES} have another output: double/1, double/2, double/3, double/4, double/5 and 3 more"
    ]
    history = json.loads(blessed.baseline.read_text())["history"]
    assert [entry["reason"] for entry in history] == ["as it stands", "boxes now"]
    changed = sum(
        old != new for old, new in zip(before.splitlines(), blessed.baseline.read_text().splitlines()[0:], strict=False)
    )
    assert changed > 0
    assert run(blessed).code == 0


def test_failing_cases_are_blessed_one_by_one_or_not_at_all(blessed: SmallSuite) -> None:
    before = blessed.baseline.read_bytes()
    blessed.break_flow()
    refused = bless(blessed)
    assert refused.code == 1
    assert "failing: 2 cases (double/7, double/8)" in refused.err and "expected 14, came 15" in refused.err
    wrong = bless(blessed, "--accept", "double/7", "--accept", "double/1", "--accept", "dbl")
    assert wrong.code == 3
    assert "--accept double/1: it passes" in wrong.err and "--accept dbl: the suite has no such case" in wrong.err
    assert bless(blessed, "--accept", "double/7").code == 1
    assert blessed.baseline.read_bytes() == before
    assert bless(blessed, "--accept", "double/7", "--accept", "double/8", reason="a known defect").code == 0
    told = answer(run(blessed, "--json"))
    assert (told["verdict"], told["failed"], told["accepted"]) == ("pass", 2, ["double/7", "double/8"])
    blessed.flow(FLOW.replace("pieces", "boxes").replace("number * 2", "number * 2 + (number > 6)"))
    assert bless(blessed, reason="boxes").code == 0, "what was accepted stays so"
    blessed.flow(FLOW)
    told = answer(run(blessed, "--json"))
    assert (told["verdict"], told["improved"]) == ("pass", ["double/7", "double/8"])


def test_a_baseline_written_by_hand_is_refused_and_accepts_nothing(blessed: SmallSuite) -> None:
    blessed.break_flow()
    lines = blessed.baseline.read_text().splitlines()
    edited = [line.replace('"passed":true', '"passed":false') if '"id":"double/7"' in line else line for line in lines]
    edited = [line.replace('"passed":true', '"passed":false') if '"id":"double/8"' in line else line for line in edited]
    blessed.baseline.write_text("\n".join(edited) + "\n")
    done = run(blessed)
    assert done.code == 3
    assert "changed by hand or by a merge" in done.out
    assert bless(blessed).code == 1, "what a hand accepted is not accepted"
    blessed.flow(FLOW)
    assert bless(blessed, reason="as it was").code == 0
    history = json.loads(blessed.baseline.read_text())["history"]
    assert [entry["reason"] for entry in history] == ["as it stands", "as it was"], "its history lives on"


def test_a_flow_that_does_not_give_the_same_twice_is_not_blessed(suite: SmallSuite) -> None:
    suite.flow(FLOW.replace('"pieces"', "__import__('os').urandom(4).hex()"))
    done = bless(suite)
    assert done.code == 3
    assert f"was not the same twice: {CASES} cases (double/1" in done.err
    assert not suite.baseline.exists()


def test_a_suite_full_of_mistakes_tells_them_all_and_reports_say_so(blessed: SmallSuite) -> None:
    stale = blessed.home / "junit.xml"
    stale.write_text("<testsuites>of an earlier run that passed</testsuites>")
    blessed.cases({1: case(1), 2: case(1), 3: {**case(3), "kind": "outptu"}})
    done = run(blessed, "--junit", "junit.xml", "--markdown", "comment.md", "--json")
    assert done.code == 3
    assert "all.jsonl:2" in done.err and "all.jsonl:3" in done.err
    assert answer(done)["verdict"] == "harness_error"
    assert "all.jsonl:2" in stale.read_text() and "earlier" not in stale.read_text()
    assert "nothing decided" in (blessed.home / "comment.md").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("run",), "Missing argument"),
        (("run", "evals", "--jobs", "-1"), "--jobs"),
        (("run", "nowhere"), "nowhere"),
        (("run", "evals", "--base", "nowhere.json"), "nowhere.json"),
        (("run", "evals", "--html", "evals"), "evals"),
        (("run", "evals", "--fast"), "No such option"),
        (("rnu",), "No such command"),
        (("bless", "evals", "--reason", "x", "--accept"), "--accept"),
    ],
)
def test_no_mistake_of_a_command_line_is_a_verdict(blessed: SmallSuite, words: tuple[str, ...], said: str) -> None:
    done = ctxpipe("eval", *words, folder=blessed.home)
    assert done.code == 3, "1 says regression, 2 inconclusive"
    assert said in done.err + done.out


def test_reports_that_can_not_be_written_are_told(blessed: SmallSuite) -> None:
    (blessed.home / "file").write_text("")
    done = run(blessed, "--html", "file/page.html")
    assert done.code == 3
    assert "file/page.html: can't be" in done.err


def test_what_a_change_does_to_the_baseline_itself_is_told(blessed: SmallSuite) -> None:
    base = blessed.home / "base.json"
    base.write_bytes(blessed.baseline.read_bytes())
    blessed.break_flow()
    assert bless(blessed, "--accept", "double/7", "--accept", "double/8", reason="cheaper").code == 0
    told = answer(run(blessed, "--json", "--base", "base.json", "--markdown", "comment.md"))
    assert told["verdict"] == "pass"
    assert told["baseline_moved"] == {"reasons": ["cheaper"], "gone": [], "now_fail": ["double/7", "double/8"]}
    assert "no longer have to pass" in (blessed.home / "comment.md").read_text()


def test_a_damaged_baseline_of_the_other_branch_does_not_block_the_change_that_mends_it(blessed: SmallSuite) -> None:
    (blessed.home / "base.json").write_text("<<<<<<< HEAD\n{}\n")
    done = run(blessed, "--json", "--base", "base.json")
    assert done.code == 0
    assert "base.json:1: holds a merge that was not resolved" in done.err
    assert "baseline_moved" not in answer(done)


def test_ctrl_c_leaves_everything_as_it_was(blessed: SmallSuite) -> None:
    before = blessed.baseline.read_bytes()
    began = blessed.home / "began"
    blessed.flow(f"import time\nfrom pathlib import Path\n\nasync def handle(case_input, given):\n"
                 f"    Path({str(began)!r}).touch()\n    time.sleep(20)\n")  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", "eval", "bless", "evals", "--reason", "x"],
        cwd=blessed.home,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for _ in range(600):
        if began.exists():
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "interrupted" in told and "Traceback" not in told
    assert blessed.baseline.read_bytes() == before


def test_a_defect_of_our_own_is_no_verdict(blessed: SmallSuite) -> None:
    broken = "import pipeline.evaluation.suite as suite\nsuite.read_suite = lambda folder: 1 / 0\n"
    (blessed.home / "sitecustomize.py").write_text(broken)
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", "eval", "run", "evals"],
        cwd=blessed.home,
        env={**os.environ, "PYTHONPATH": f"{blessed.home}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 3
    assert "ZeroDivisionError" in done.stderr and "a defect of ctxpipe" in done.stderr


def test_on_a_terminal_both_outputs_stand_side_by_side_and_steer_nothing(blessed: SmallSuite) -> None:
    blessed.flow(FLOW.replace("number * 2", "[number * 2, chr(27) + ']0;owned' + chr(7) + chr(0x202E)][number > 6]"))
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", "eval", "run", "evals", "--jobs", "0"],
        cwd=blessed.home,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100", "TERM": "xterm-256color"},
        stdout=theirs,
        stderr=subprocess.DEVNULL,
    )
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # so a terminal ends
        while part := os.read(ours, 65536):
            shown += part
    assert process.wait(timeout=60) == 1
    text = shown.decode()
    assert "\x1b]0;" not in text and "\u202e" not in text
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    assert re.search(r"baseline +now", plain)
    assert re.search(r'"answer": 14, +"answer": "\\u001b\]0;owned\\u0007\\u202e"', plain), plain


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys; from pipeline.cli import run; code = run(['eval', '--help']); "
        "heavy = {'pydantic', 'rich', 'jinja2', 'numpy', 'aiohttp'}; "
        "sys.exit(str(sorted(heavy & set(sys.modules))) if heavy & set(sys.modules) else code)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for name in ("run", "bless"):
        assert f"  {name} " in done.stdout
