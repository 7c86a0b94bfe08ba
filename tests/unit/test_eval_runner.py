"""Running a suite: one digest whatever the order, the processes and the hash seed; what a flow does to itself stays its
own; what keeps a case from being run is never a verdict."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.evaluation import workers
from pipeline.evaluation.errors import SuiteError
from pipeline.evaluation.results_file import read_results, results_bytes, run_digest, write_results
from pipeline.evaluation.runner import models_of, run_suite
from pipeline.evaluation.values import CaseResult, Run
from tests.support.begun_suite import BegunSuite, case

ROOT = Path(__file__).parents[2]


@pytest.fixture
def suite(tmp_path: Path) -> BegunSuite:
    return BegunSuite(tmp_path / "suite")


def failures(run: Run) -> dict[str, str]:
    return {
        one.id: "; ".join(f"{check.check}: {check.told}" for check in one.checks if not check.passed)
        for one in run.results
        if not one.passed
    }


def of(run: Run, name: str) -> CaseResult:
    return next(one for one in run.results if one.id == name)


def test_the_scaffold_passes_and_tells_what_it_saw(suite: BegunSuite) -> None:
    progress: list[tuple[int, int]] = []
    run = suite.run(progress=lambda done, of_all: progress.append((done, of_all)))
    assert (failures(run), run.harness) == ({}, ())
    assert progress == [(n, 12) for n in range(1, 13)]
    assert [one.id for one in run.results] == sorted(one.id for one in run.results)
    assert run.models == {"answer": "large gpt-4o-mini 2024-07-18"}
    assert (run.suite, run.flow) == ("support", "support_flow:handle")
    read = suite.read()
    assert (run.suite_digest, dict(run.fixtures)) == (read.digest, read.fixtures)
    refund = of(run, "trace/refund")
    assert [(step.what, step.name) for step in refund.steps] == [
        ("context", "order"),
        ("model", "answer"),
        ("tool", "refund"),
    ]
    assert refund.steps[2].asked == {"order": "1", "amount": 40}
    assert refund.steps[2].at_ms == 120.0
    assert refund.measures == {"score": 1.0, "latency_ms": 120.0, "cost": pytest.approx(3.6e-05), "malformed": 0.0}
    assert of(run, "malformed/truncated").measures["malformed"] == 1.0
    assert of(run, "latency/hang").measures["latency_ms"] == 2940.0
    replay = next(one for one in read.cases if one.kind == "replay")
    assert of(run, "replay/orders").output == replay.expect[0].value


def test_two_processes_in_another_order_with_another_hash_seed_give_the_same_bytes(
    suite: BegunSuite, tmp_path: Path
) -> None:
    program = tmp_path / "twice.py"
    program.write_text(
        "import sys\nfrom pathlib import Path\n"
        "from pipeline.evaluation.results_file import write_results\n"
        "from pipeline.evaluation.runner import run_suite\nfrom pipeline.evaluation.suite import read_suite\n"
        "if __name__ == '__main__':\n"
        "    run = run_suite(read_suite(Path(sys.argv[1])), jobs=int(sys.argv[2]), seed=int(sys.argv[3]))\n"
        "    assert not run.harness, run.harness\n"
        "    write_results(run, Path(sys.argv[4]))\n"
    )
    written = []
    for hash_seed, jobs, seed in (("0", "0", "1"), ("4242", "2", "7")):
        file = tmp_path / f"{hash_seed}.jsonl"
        done = subprocess.run(
            [sys.executable, str(program), str(suite.folder), jobs, seed, str(file)],
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        written.append(file.read_bytes())
    assert written[0] == written[1]
    assert results_bytes(suite.run()) == written[0]


FLOW = """
import asyncio, json, os, random, socket, sys, time, urllib.request
from pipeline.guard.values import ModelRequest

async def handle(asked, given):
    do = asked["do"]
    if do == "nothing":
        return {"sum": 1}
    if do == "raise":
        raise LookupError(f"no {object()!r}")
    if do == "nan":
        return {"a": [float("nan")]}
    if do == "object":
        return {"a": {1: 2}}
    if do == "surrogate":
        return {"a": chr(0xD800)}
    if do == "exit":
        sys.exit(3)
    if do == "killed":
        os.kill(os.getpid(), 9)
    if do == "ended":
        os._exit(7)
    if do == "spin":
        while True:
            pass
    if do == "never":
        await asyncio.Event().wait()
    if do == "print":
        print("to nobody")
        return {}
    if do == "http":
        try:
            urllib.request.urlopen("http://127.0.0.1:9/", timeout=1)
        except Exception:
            return {"sum": 1}
    if do == "aio":
        try:
            await asyncio.open_connection("127.0.0.1", 9)
        except Exception:
            return {"sum": 1}
    if do == "model":
        try:
            await given.guard.call(ModelRequest(task="answer", messages=[{"role": "user", "content": "unheard of"}]))
        except Exception:
            return {"sum": 1}
    if do == "tool":
        return await given.tools.call("fails", {"at": 1})
    if do == "leaves":
        asyncio.get_running_loop().create_task(asyncio.sleep(1000))
        await given.clock.sleep(0.25)
        return {"now": given.clock.now_us()}


def plain(asked, given):
    return {"sum": 2}


class Failing:
    async def call(self, name, arguments):
        raise ValueError(f"{name} at {arguments['at']}")


def tools(asked):
    return Failing()
"""


@pytest.fixture
def doing(suite: BegunSuite) -> Iterator[Any]:
    """Runs a case for each thing that the flow is to do."""
    name = "doing_flow"
    suite.flow(name, FLOW)

    def run(*things: str, **options: Any) -> Run:
        suite.cases(
            *(case(thing, {"check": "calls_max", "value": {"model": 0}}, input={"do": thing}) for thing in things)
        )
        return suite.run(**options)

    run.suite, run.name = suite, name  # type: ignore[attr-defined]
    yield run


def test_what_a_flow_raises_or_returns_wrongly_is_a_failure_of_its_case(doing: Any) -> None:
    told = failures(doing("nothing", "raise", "nan", "object", "exit", "never", "surrogate"))
    assert list(told) == ["exit", "nan", "never", "object", "raise", "surrogate"]
    assert f"raised_nothing: LookupError: no <object object at 0x…> ({doing.name}.py:" in told["raise"]
    assert "the flow's output is no JSON: /a/0 is nan, which JSON can't hold" in told["nan"]
    assert "the flow's output is no JSON: a text holds half of a surrogate pair" in told["surrogate"]
    assert "the flow's output is no JSON: /a has the key 1, which is no text" in told["object"]
    assert "it ended the process: SystemExit(3)" in told["exit"]
    assert "it never ends: it waits for something that can never come" in told["never"]


def test_a_case_that_takes_its_process_down_takes_nothing_else(doing: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "GRACE_S", 2.0)
    doing.suite.change("suite.yaml", lambda text: text + "case_s_max: 1\n")
    run = doing("killed", "ended", "spin", "nothing", jobs=2)
    told = failures(run)
    assert list(told) == ["ended", "killed", "spin"]
    assert "it took its process down (SIGKILL)" in told["killed"]
    assert "it ended its process (exit code 7)" in told["ended"]
    assert "it took more than 1 s of real time" in told["spin"]
    assert run.harness == ()
    assert of(run, "nothing").passed


def test_what_a_flow_hides_from_itself_is_not_hidden_from_the_run(doing: Any) -> None:
    run = doing("http", "aio", "model", "nothing")
    assert [one.id for one in run.results] == ["nothing"]
    told = "\n".join(run.harness)
    assert told.count("the flow opened a connection to") == 2
    assert "case model: there is no recording of what the task answer asks the endpoint large" in told
    assert len(run.harness) == 3


def test_a_live_connection_is_an_error_in_a_process_of_its_own_too(doing: Any) -> None:
    run = doing("http", "nothing", jobs=1)
    assert len(run.harness) == 1
    assert "case http: the flow opened a connection" in run.harness[0]


def test_prints_of_a_flow_do_not_stand_among_answers(doing: Any, capfd: pytest.CaptureFixture[str]) -> None:
    assert failures(doing("print")) == {}
    assert failures(doing("print", jobs=1)) == {}
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("to nobody") == 2


def test_a_flow_need_not_be_a_coroutine_and_time_is_the_cases_own(doing: Any) -> None:
    doing.suite.change("suite.yaml", lambda text: text.replace(f"{doing.name}:handle", f"{doing.name}:plain"))
    assert of(doing("nothing"), "nothing").output == {"sum": 2}
    doing.suite.change("suite.yaml", lambda text: text.replace(f"{doing.name}:plain", f"{doing.name}:handle"))
    left = of(doing("leaves"), "leaves")
    assert left.output == {"now": 1_767_225_600_250_000}
    assert left.measures["latency_ms"] == 250.0


def test_what_a_tool_raises_goes_to_the_flow_and_into_the_trace(doing: Any) -> None:
    doing.suite.change("suite.yaml", lambda text: text.replace("support_flow:tools", f"{doing.name}:tools"))
    run = doing("tool")
    assert "ValueError: fails at 1" in failures(run)["tool"]
    (step,) = of(run, "tool").steps
    assert (step.what, step.name, step.asked) == ("tool", "fails", {"at": 1})
    assert "ValueError: fails at 1" in step.came["raised"]


def test_a_flow_without_tools_that_wants_one_is_a_mistake_of_the_suite(doing: Any) -> None:
    doing.suite.change("suite.yaml", lambda text: text.replace("  tools: support_flow:tools\n", ""))
    run = doing("tool")
    assert run.results == ()
    assert "the flow calls the tool 'fails', and suite.yaml names no tools" in run.harness[0]


def test_metrics_that_a_case_raises_are_counted(suite: BegunSuite) -> None:
    metric = {"metric": "ctxpipe_guard_attempts_total", "labels": {"endpoint": "large"}}
    suite.cases(
        case("right", {"check": "counted", "value": {**metric, "by": 1}}),
        case("wrong", {"check": "counted", "value": {**metric, "by": 2}}),
        case("other", {"check": "counted", "value": {"metric": "ctxpipe_no_such_total", "by": 0}}),
    )
    told = failures(suite.run())
    assert list(told) == ["wrong"]
    assert "rose by 1, expected 2" in told["wrong"]


def test_only_some_cases_and_what_fits_none(suite: BegunSuite) -> None:
    run = suite.run(only=["trace/*", "replay"])
    assert {one.kind for one in run.results} == {"trace", "replay"}
    assert run.suite_digest == suite.read().digest
    with pytest.raises(SuiteError, match="fits 'trade/refund'; did you mean trace/refund"):
        suite.run(only=["trade/refund"])


def test_a_broken_fixture_keeps_its_case_from_being_run_and_no_other(suite: BegunSuite) -> None:
    (suite.folder / "bundles/broken.jsonl").write_text('{"context": "order", "key": "1", "data": {"ordr_id": 1}}\n{')
    suite.cases(case("broken", context={"bundles": "bundles/broken.jsonl"}), case("whole"))
    run = suite.run()
    assert [one.id for one in run.results] == ["whole"]
    assert "case broken: bundles/broken.jsonl:" in run.harness[0]


def test_the_code_under_test_can_be_changed_in_every_process(suite: BegunSuite) -> None:
    (suite.folder / "breaking.py").write_text(
        "import support_flow\n\ndef apply():\n    support_flow.REFUNDS_UP_TO = 1000\n"
        "\ndef fails():\n    raise ValueError('no')\n"
    )
    mended = suite.run(jobs=1, prepare="breaking:apply")
    assert list(failures(mended)) == ["trace/large-refund"]
    with pytest.raises(SuiteError, match="breaking:fails failed: ValueError: no"):
        suite.run(jobs=1, prepare="breaking:fails")


def test_results_are_read_as_they_were_written(suite: BegunSuite, tmp_path: Path) -> None:
    run, file = suite.run(), tmp_path / "results.jsonl"
    sha = write_results(run, file)
    read = read_results(file)
    assert read == replace(run, seconds=0.0, fixtures=dict(run.fixtures))
    assert write_results(read, tmp_path / "again.jsonl") == sha
    assert (tmp_path / "again.jsonl").read_bytes() == file.read_bytes()
    assert sorted(path.name for path in tmp_path.glob("*.jsonl")) == ["again.jsonl", "results.jsonl"]
    assert b"seconds" not in file.read_bytes()


def changed(lines: list[bytes], place: int, **parts: Any) -> bytes:
    value = {**json.loads(lines[place]), **parts}
    return b"\n".join([*lines[:place], json.dumps(value).encode(), *lines[place + 1 :]])


def test_files_of_results_that_are_none(suite: BegunSuite, tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    write_results(suite.run(), file)
    lines = file.read_bytes().splitlines()
    for content, told in (
        (b"", "the file is empty"),
        (b"{", ":1: not JSON"),
        (b"[]", ":1: this is no file of results"),
        (changed(lines, 0, version=2), "it has version 2, this program reads 1"),
        (b"\n".join(lines[:-1]), "it was changed after the run, or cut"),
        (changed(lines, 3, passed=False), "it was changed after the run, or cut"),
        (changed(lines, 3, more=1), ":4: this is no result of a case"),
        (changed(lines, 3, kind="else"), "no cases of the kind 'else'"),
        (b"\n".join([*lines, lines[-1]]), "stands in it twice"),
        (b"\n".join([*lines[:4], lines[4][:50]]), ":5: not JSON"),
    ):
        file.write_bytes(content)
        with pytest.raises(SuiteError) as caught:
            read_results(file)
        assert told in str(caught.value)
    with pytest.raises(SuiteError, match="cannot be read: No such file"):
        read_results(tmp_path / "nowhere.jsonl")


def test_the_digest_of_a_run_moves_with_its_results_alone(suite: BegunSuite) -> None:
    run = suite.run()
    assert run_digest(reversed(run.results)) == run.digest
    suite.change("support_flow.py", lambda text: text.replace("A colleague will", "Somebody will"))
    one = run.results[0]
    assert run_digest([replace(one, output_digest="0" * 64), *run.results[1:]]) != run.digest


def test_answers_of_another_source_are_for_this_process(suite: BegunSuite) -> None:
    read = suite.read()

    def source(asked: Any) -> Any:
        raise AssertionError

    with pytest.raises(SuiteError, match="run with jobs=0"):
        run_suite(read, jobs=2, source=source)
    assert models_of(replace(read, guard=None)) == {}


def test_what_a_flow_draws_by_chance_is_the_same_in_every_run(suite: BegunSuite) -> None:
    suite.flow("chance_flow", "import random\n\ndef handle(asked, given):\n    return random.random()\n")
    suite.cases(case("a"), case("b"))
    one, other = suite.run(), suite.run(jobs=1, seed=3)
    assert one.digest == other.digest
    assert of(one, "a").output != of(one, "b").output


def test_a_defect_of_the_harness_is_no_verdict(suite: BegunSuite, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any) -> Any:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(workers, "result_of", broken)
    run = suite.run(only=["output"])
    assert run.results == ()
    assert run.harness[0].startswith("case output/no-such-order: a defect of the harness: ZeroDivisionError: ours (")


def test_whoever_stops_a_run_stops_its_processes(suite: BegunSuite) -> None:
    class Stopped(Exception):
        pass

    def stop(done: int, of_all: int) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        suite.run(jobs=2, progress=stop)
    assert multiprocessing.active_children() == []


def test_two_suites_with_modules_of_one_name_do_not_test_each_others_flow(tmp_path: Path) -> None:
    suites = [BegunSuite(tmp_path / name) for name in ("one", "other")]
    for number, suite in enumerate(suites):
        suite.flow("same_name_flow", f"def handle(asked, given):\n    return {number}\n")
        suite.cases(case("a"))
    read = [suite.read() for suite in suites]
    for jobs in (0, 1):
        assert [of(run_suite(one, jobs=jobs), "a").output for one in read] == [0, 1]


def test_a_base_install_is_enough_for_all_but_retrieval(suite: BegunSuite, tmp_path: Path) -> None:
    program = tmp_path / "base.py"
    program.write_text(
        "import sys\n"
        "EXTRAS = ('numpy', 'faiss', 'tantivy', 'onnxruntime', 'httpx', 'scipy', 'opentelemetry', 'fastavro')\n"
        "class Missing:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in EXTRAS:\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Missing())\n"
        "from pathlib import Path\n"
        "from pipeline.evaluation.runner import run_suite\nfrom pipeline.evaluation.suite import read_suite\n"
        "run = run_suite(read_suite(Path(sys.argv[1])), jobs=0)\n"
        "assert not run.harness, run.harness\n"
        "sys.exit(not all(one.passed for one in run.results))\n"
    )
    done = subprocess.run(
        [sys.executable, str(program), str(suite.folder)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


def test_a_flow_that_changes_its_input_changes_its_own_copy(suite: BegunSuite) -> None:
    suite.flow("greedy_flow", 'def handle(asked, given):\n    asked["list"].append(1)\n    return asked["list"]\n')
    suite.cases(case("a", input={"list": []}))
    read = suite.read()
    assert [of(run_suite(read, jobs=0), "a").output for _ in range(2)] == [[1], [1]]


def test_the_clock_of_a_case_begins_where_the_suite_says(suite: BegunSuite) -> None:
    suite.flow("telling_flow", "def handle(asked, given):\n    return given.clock.now_us()\n")
    suite.change("suite.yaml", lambda text: text + "now: 2020-02-02T00:00:00.5+01:00\n")
    suite.cases(case("a"))
    assert of(suite.run(), "a").output == 1_580_598_000_500_000
