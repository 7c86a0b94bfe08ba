"""`ctxpipe eval compare SUITE --model A=… --model B=…`: one suite, run with two models."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import run
from pipeline.guard.evidence import Evidence
from pipeline.guard.faults import FaultServer

FLOW = """
from pipeline.guard.output import of_schema
from pipeline.guard.values import ModelRequest

SUM = {"type": "object", "properties": {"sum": {"type": "integer"}}, "required": ["sum"]}


async def handle(asked, given):
    messages = [{"role": "user", "content": asked["question"]}]
    request = ModelRequest(task="add", messages=messages, output=of_schema("sum", SUM), deadline_s=2)
    result = await given.guard.call(request)
    return {"sum": result.output["sum"] if result.answered else None}
"""
GUARD = """
endpoints:
  - {name: old, url: "http://127.0.0.1:1/v1", model: abacus, revision: "7"}
  - {name: new, url: "http://127.0.0.1:1/v1", model: slide rule, revision: "8"}
  - {name: broken, url: "http://127.0.0.1:1/v1", model: dice}
routes:
  add: {primary: old, retries_max: 0, repair_turn: false}
"""
CASES = 20
WRONG = range(4, 16)
"""Of these the old model is wrong."""


def completion(content: str) -> str:
    message = {"role": "assistant", "content": content}
    return json.dumps({"model": "m", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})


def case(number: int) -> dict[str, Any]:
    answers = {
        "old": [f"raw:raw/{'wrong' if number in WRONG else 'right'}.json"],
        "new": ["raw:raw/right.json"],
        "broken": ["raw:raw/malformed.json"],
    }
    return {
        "id": f"add/{number:02}",
        "kind": "output",
        "why": "The bill would be wrong.",
        "group": f"customer-{number}",
        "input": {"question": f"{number} + {4 - number}"},
        "conditions": {"answers": answers},
        "expect": [{"check": "number", "path": "/sum", "value": 4, "tolerance": 0}],
    }


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    folder = tmp_path / "suite"
    for name in ("cases", "raw"):
        (folder / name).mkdir(parents=True)
    (folder / "suite.yaml").write_text("suite: sums\nflow: {python: 'adding:handle'}\nguard: guard.yaml\n")
    (folder / "adding.py").write_text(FLOW)
    (folder / "guard.yaml").write_text(GUARD)
    (folder / "cases" / "sums.jsonl").write_text("".join(json.dumps(case(one)) + "\n" for one in range(CASES)))
    answers = {"right": '{"sum": 4}', "wrong": '{"sum": 5}', "malformed": '{"sum": 4,'}
    for name, content in answers.items():
        (folder / "raw" / f"{name}.json").write_text(completion(content))
    return folder


def compare(suite: Path, capsys: pytest.CaptureFixture[str], words: Sequence[str]) -> tuple[int, dict[str, Any]]:
    code = run(["eval", "compare", str(suite), "--jobs", "1", "--json", *words])
    captured = capsys.readouterr()
    return code, json.loads(captured.out.splitlines()[-1]) if code != 3 else {"err": captured.err}


def test_a_model_that_is_better_gets_its_evidence(
    suite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = tmp_path / "evidence.json"
    words = ["--model", "B=new", "--evidence", str(made), "--metric", "passed"]
    code, told = compare(suite, capsys, words)
    assert (code, told["verdict"], told["method"]) == (0, "better", "mcnemar")
    assert (told["better"], told["worse"], told["ties"]) == (len(WRONG), 0, CASES - len(WRONG))
    evidence = Evidence.model_validate_json(made.read_bytes())
    assert (evidence.active.model, evidence.candidate.model, evidence.task) == ("abacus", "slide rule", "add")
    assert evidence.active.revision == "7"
    assert compare(suite, capsys, words)[1]["a"] == told["a"], "a run gives the same bytes again"


def test_the_other_way_round_it_is_not_better_and_malformed_answers_break_a_limit(
    suite: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, told = compare(suite, capsys, ["--model", "A=new", "--model", "B=old"])
    assert (code, told["verdict"]) == (1, "not_better")
    code, told = compare(suite, capsys, ["--model", "B=broken", "--limit", "malformed:+0.2"])
    assert (code, told["broken"]) == (1, ["malformed"])
    assert told["limits"][0]["observed"] == 1


def test_models_that_there_are_not_decide_nothing(suite: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, told = compare(suite, capsys, ["--model", "B=nwe"])
    assert code == 3
    assert "there is no endpoint 'nwe'" in told["err"] and "new" in told["err"]
    code, told = compare(suite, capsys, ["--model", "B=new", "--task", "ad"])
    assert code == 3
    assert "there is no route for the task 'ad'" in told["err"]


def test_a_suite_tells_how_many_pairs_it_has_for_a_plan(suite: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["eval", "compare", str(suite), "--plan", "effect=40,discordant=0.6"]) == 0
    assert f"has {CASES} cases in {CASES} groups" in capsys.readouterr().out


async def test_a_candidate_is_recorded_beside_the_active_model_and_then_compared(
    suite: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Servers are asked once; the comparison asks nobody."""
    cases = suite / "cases" / "sums.jsonl"
    plain = [{key: value for key, value in case(one).items() if key != "conditions"} for one in range(CASES)]
    cases.write_text("".join(json.dumps(one) + "\n" for one in plain))
    async with FaultServer('{"sum": 5}') as old, FaultServer('{"sum": 4}') as new:
        urls = ["--model-url", f"old={old.url('valid')}", "--model-url", f"new={new.url('valid')}", "--yes"]
        for more in ([], ["--model", "new", "--task", "add"]):
            assert await asyncio.to_thread(run, ["eval", "record", str(suite), *urls, *more]) == 0
        assert sum(old.asked.values()) == sum(new.asked.values()) == CASES
    code, told = compare(suite, capsys, ["--model", "B=new", "--task", "add"])
    assert (code, told["better"]) == (0, CASES)
    assert run(["eval", "record", str(suite), "--task", "add"]) == 3
    assert "--task goes with --model" in capsys.readouterr().err


ROUTING = """
version: 1
tasks:
  add: {active: old}
"""


def test_the_evidence_promotes_the_better_model_and_no_other(
    suite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    routing, guard = tmp_path / "routing.yaml", suite / "guard.yaml"
    routing.write_text(ROUTING)
    for candidate, code in (("broken", 1), ("new", 0)):
        made = tmp_path / f"{candidate}.json"
        assert compare(suite, capsys, ["--model", f"B={candidate}", "--evidence", str(made)])[0] == code
        words = ["route", "promote", "add", candidate, "--evidence", str(made), "--file", str(routing)]
        assert run([*words, "--guard", str(guard)]) == code, capsys.readouterr()
        assert ("active: new" in routing.read_text()) is (code == 0)
    assert run(["route", "check", str(routing), "--guard", str(guard)]) == 0
