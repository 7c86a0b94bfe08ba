"""Reading a suite: all mistakes of all its files in one message, and digests that move with what they stand for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from click.testing import CliRunner

import schemas
from pipeline.commands.eval_init import command as init_command
from pipeline.commands.schema import command as schema_command
from pipeline.core.errors import ConfigError
from pipeline.evaluation.case_file import case_json_schema
from pipeline.evaluation.checks import CHECKS
from pipeline.evaluation.errors import SuiteError
from pipeline.evaluation.runner import chosen
from pipeline.evaluation.scaffold import begin_suite
from pipeline.evaluation.suite import read_suite, with_model
from pipeline.evaluation.values import KINDS
from tests.support.begun_suite import BegunSuite, case


@pytest.fixture
def suite(tmp_path: Path) -> BegunSuite:
    return BegunSuite(tmp_path / "suite")


def mistakes(suite: BegunSuite) -> list[str]:
    with pytest.raises(SuiteError) as caught:
        suite.read()
    assert caught.value.exit_code == 3
    return [one.replace(f"{suite.folder}/", "") for one in caught.value.mistakes]


def test_a_suite_is_read_whole(suite: BegunSuite) -> None:
    read = suite.read()
    assert read.name == "support"
    assert [one.id for one in read.cases] == sorted(one.id for one in read.cases)
    assert {one.kind for one in read.cases} == set(KINDS) - {"retrieval"}
    assert read.places["replay/orders"].endswith("cases/first.jsonl:1")
    assert sorted(read.fixtures) == [
        "bundles/orders.jsonl",
        "contexts/order.yaml",
        "events/orders.jsonl",
        "guard.yaml",
        "recordings/answer.jsonl",
        "schemas/reply.json",
        "suite.yaml",
    ]
    assert list(read.specs) == ["order"]
    assert read.guard is not None
    assert list(read.guard.routes) == ["answer"]


def test_digests_follow_meaning_and_not_spelling(suite: BegunSuite) -> None:
    before = suite.read()
    lines = (suite.folder / "cases/first.jsonl").read_text().splitlines()
    spelt = [
        json.dumps(dict(reversed(json.loads(line).items())), indent=None, separators=(" ,", " : ")) for line in lines
    ]
    (suite.folder / "cases/first.jsonl").write_text("\n\n".join(reversed(spelt)))
    (suite.folder / "baseline.json").write_text("{}")
    (suite.folder / "reports").mkdir()
    (suite.folder / "reports/last.html").write_text("x")
    (suite.folder / "support_flow.py").write_text((suite.folder / "support_flow.py").read_text() + "\n")
    (suite.folder / "README.md").write_text("about")
    assert suite.read().digest == before.digest
    suite.change("cases/first.jsonl", lambda text: text.replace("The day would", "The date would"))
    changed = suite.read()
    assert changed.digest != before.digest
    assert [name for name in before.digests if before.digests[name] != changed.digests[name]] == ["output/when"]
    suite.change("bundles/orders.jsonl", lambda text: text.replace("Ada", "Eve"))
    assert suite.read().fixtures["bundles/orders.jsonl"] != before.fixtures["bundles/orders.jsonl"]


def test_all_mistakes_of_all_files_are_told_at_once(suite: BegunSuite) -> None:
    suite.cases(
        case("twice"),
        case("twice"),
        case("kind", kind="ouput"),
        case("unknown", expect_=1),
        '{"id": "json", ',
        '{"id": "keys", "id": "again", "kind": "output"}',
        '{"id": "nan", "kind": "output", "input": {"a": NaN}, "expect": []}',
        "[1]",
        case("bad id!"),
        case("check", {"check": "eqals", "value": 1}),
        case("wrong-kind", {"check": "recall", "value": {"relevant": ["a"]}}),
        case("nested", {"check": "equals", "vlaue": 1}),
        case("no-file", context={"bundles": "bundles/order.jsonl"}),
        case("leaves", context={"bundles": "../bundles/orders.jsonl"}),
        case("twins", twins=["redelivered"]),
        case("log", kind="replay", expect=[{"check": "bundles"}]),
        case("fault", conditions={"answers": {"large": ["error_50"], "larg": ["hang"]}}),
        case("both", context={"bundles": "bundles/orders.jsonl", "events": "events/orders.jsonl", "until": 3}),
    )
    suite.change("contexts/order.yaml", lambda text: text.replace("fields:", "feilds:", 1))
    suite.change("guard.yaml", lambda text: text.replace("primary: large", "primary: lage"))
    (suite.folder / "schemas/reply.json").write_text('{"type": "objekt"}')
    found = mistakes(suite)
    told = "\n".join(found)
    for expected in (
        "cases/first.jsonl:2: the id 'twice' stands at",
        "cases/first.jsonl:3: case 'kind': kind: 'ouput' is not one of",
        "did you mean output?",
        "cases/first.jsonl:4: case 'unknown': expect_: unknown key; did you mean expect?",
        "cases/first.jsonl:5: it is no JSON",
        "cases/first.jsonl:6: the key 'id' stands twice",
        "cases/first.jsonl:7: NaN is no number of JSON",
        "cases/first.jsonl:8: a case is a JSON object",
        "cases/first.jsonl:9: case 'bad id!': id: an id has 1 to 200 letters",
        "cases/first.jsonl:10: case 'check': expect.0: there is no check 'eqals'; did you mean equals?",
        "cases/first.jsonl:11: case 'wrong-kind': expect.0 (recall): a case of the kind output can't have it, only",
        "cases/first.jsonl:12: case 'nested': expect.0.vlaue: unknown key; did you mean value?",
        "cases/first.jsonl:13: case 'no-file': there is no file 'bundles/order.jsonl' in the suite; did you mean "
        "bundles/orders.jsonl?",
        "cases/first.jsonl:14: case 'leaves': '../bundles/orders.jsonl' leaves the suite's folder",
        "cases/first.jsonl:15: case 'twins': twins: only a replay has them",
        "cases/first.jsonl:16: case 'log': context.events: a replay needs a log",
        "cases/first.jsonl:18: case 'both': context: has events and bundles",
        "contexts/order.yaml:11: feilds: unknown key; did you mean fields?",
        "guard.yaml:",
        "route 'answer' names the endpoint 'lage'",
        "suite.yaml:7: schemas.reply:",
    ):
        assert expected in told, f"{expected!r} is not in:\n{told}"
    assert not any("'fault'" in one for one in found), "of endpoints nothing is known without a readable guard"
    assert not any("expect: must not be empty" in one for one in found), "that only follows from what is wrong in it"


def test_what_endpoints_can_not_do_is_told(suite: BegunSuite) -> None:
    suite.cases(case("fault", conditions={"answers": {"large": ["error_50", "raw:nowhere.json"], "larg": ["hang"]}}))
    told = "\n".join(mistakes(suite))
    assert "the endpoint 'larg'" in told
    assert "'error_50'" in told
    assert "nowhere.json" in told


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("suite: support", "suit: support", "suite.yaml:2: suit: unknown key; did you mean suite?"),
        ("support_flow:handle", "support_flow:handel", "support_flow has no 'handel'; did you mean handle?"),
        ("support_flow:tools", "supportflow:tools", "suite.yaml:5: flow.tools: supportflow can't be imported"),
        ("support_flow:handle", "support_flow", "'support_flow' is no object; write module:name"),
        ("support_flow:handle", "support_flow:REFUNDS_UP_TO", "is a int, which can't be called"),
        ("replay: 1", "replay: 2", "suite.yaml:8: counts.replay: replay: 1 cases came, 2 are counted on"),
        ("latency: 1}", "latency: 1, retrieval: 4}", "retrieval: 0 cases came, 4 are counted on"),
        (", latency: 1", "", "latency: 1 cases came, 0 are counted on"),
        (
            "python: support_flow:handle\n",
            "python: support_flow:handle\n  http: {url: 'http://h/'}\n",
            "write either python",
        ),
        (
            "reply.json",
            "replay.json",
            "there is no file 'schemas/replay.json' in the suite; did you mean schemas/reply.json?",
        ),
        ("guard: guard.yaml", "guard: /etc/guard.yaml", "'/etc/guard.yaml' leaves the suite's folder"),
        ("guard: guard.yaml", "cases: ['case/*.jsonl']", "no file matches 'case/*.jsonl'"),
        ("guard: guard.yaml", "fixtures: ['../*']", "'../*' leaves the suite's folder"),
    ],
)
def test_mistakes_of_the_manifest(suite: BegunSuite, old: str, new: str, told: str) -> None:
    suite.change("suite.yaml", lambda text: text.replace(old, new))
    assert told in "\n".join(mistakes(suite))


def test_a_folder_that_is_no_suite(tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match="no such folder; `ctxpipe eval init"):
        read_suite(tmp_path / "nowhere")
    with pytest.raises(SuiteError, match=r"suite.yaml: no such file, so this is no suite"):
        read_suite(tmp_path)
    (tmp_path / "suite.yaml").write_text("- a\n")
    with pytest.raises(SuiteError, match=r"suite.yaml:1: must be a mapping"):
        read_suite(tmp_path)


def test_a_suite_without_models_or_flow_needs_none(suite: BegunSuite) -> None:
    lines = (suite.folder / "cases/first.jsonl").read_text().splitlines()
    suite.cases(lines[0])
    (suite.folder / "suite.yaml").write_text("suite: small\n")
    (suite.folder / "guard.yaml").unlink()
    read = suite.read()
    assert (read.guard, read.flow) == (None, None)
    suite.cases(lines[0], lines[1], case("hang", conditions={"delay_ms": {"large": 5}}))
    told = "\n".join(mistakes(suite))
    assert "runs the flow, and suite.yaml names none under flow:" in told
    assert "conditions: tell what endpoints do, and the suite has none; write guard.yaml" in told


def test_links_do_not_leave_the_folder(suite: BegunSuite, tmp_path: Path) -> None:
    (tmp_path / "outside.jsonl").write_text("")
    (suite.folder / "bundles/link.jsonl").symlink_to(tmp_path / "outside.jsonl")
    suite.cases(case("link", context={"bundles": "bundles/link.jsonl"}))
    assert "is a link that leaves the suite's folder" in "\n".join(mistakes(suite))
    with pytest.raises(SuiteError, match="leaves"):
        BegunSuite(tmp_path / "other").read().file("../suite/suite.yaml")


def test_cases_are_chosen_by_id_pattern_kind_and_tag(suite: BegunSuite) -> None:
    suite.cases(case("a/1", tags=["slow"]), case("a/2"), case("b/1", kind="trace"))
    read = suite.read()

    def ids(*only: str) -> list[str]:
        return [one.id for one in chosen(read, only)]

    assert ids() == ["a/1", "a/2", "b/1"]
    assert ids("a/*") == ["a/1", "a/2"]
    assert ids("trace", "a/1") == ["a/1", "b/1"]
    assert ids("tag:slow") == ["a/1"]
    with pytest.raises(SuiteError, match=r"fits 'a/3'; did you mean a/2\?(.|\n)*fits 'tag:fast'"):
        ids("a/3", "tag:fast")


def test_another_model_takes_the_first_place(suite: BegunSuite) -> None:
    read = suite.read()
    swapped = with_model(read, "here", "answer")
    assert swapped.guard is not None
    assert (swapped.guard.routes["answer"].primary, swapped.guard.routes["answer"].local) == ("here", ())
    assert read.guard is not None
    assert read.guard.routes["answer"].primary == "large"
    with pytest.raises(SuiteError, match="no endpoint 'heer'; did you mean here"):
        with_model(read, "heer")
    with pytest.raises(SuiteError, match="no route for the task 'ansewr'; did you mean answer"):
        with_model(read, "here", "ansewr")


def test_the_scaffold_overwrites_nothing(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    with pytest.raises(ConfigError, match="not empty"):
        begin_suite(tmp_path)
    with pytest.raises(ConfigError, match="there already"):
        begin_suite(tmp_path / "mine")


def test_the_published_schema_is_what_the_model_says() -> None:
    result = CliRunner().invoke(schema_command, ["--eval-case"])
    published = Path(schemas.__file__).parent / "eval_case.schema.json"
    assert published.read_text() == result.output, "run: ctxpipe schema --eval-case > schemas/eval_case.schema.json"


def valid(value: Any) -> bool:
    jsonschema.Draft202012Validator.check_schema(case_json_schema())
    return bool(jsonschema.Draft202012Validator(case_json_schema()).is_valid(value))


def test_schema_and_model_agree(suite: BegunSuite) -> None:
    for line in (suite.folder / "cases/first.jsonl").read_text().splitlines():
        assert valid(json.loads(line)), line
    assert not valid({**case("x"), "kind": "else"})
    assert not valid({**case("x"), "more": 1})
    assert not valid({**case("x"), "expect": []})


def test_every_check_is_in_the_readme() -> None:
    text = (Path(schemas.__file__).parents[1] / "pipeline/evaluation/README.md").read_text()
    assert [name for name in CHECKS if f"| `{name}` |" not in text] == []


def test_the_routing_file_says_who_is_asked_and_is_no_fixture(suite: BegunSuite, tmp_path: Path) -> None:
    before = suite.read()
    text = "version: 1\ntasks:\n  answer: {active: here, override_reason: because I say so}\n"
    (suite.folder / "routing.yaml").write_text(text)
    routed = suite.read()
    assert routed.guard is not None
    assert (routed.guard.routes["answer"].primary, routed.guard.routes["answer"].local) == ("here", ())
    assert routed.digest == before.digest
    (suite.folder / "routing.yaml").rename(tmp_path / "routing.yaml")
    assert suite.read().guard == before.guard
    suite.change(
        "suite.yaml", lambda old: old.replace("guard: guard.yaml", "guard: guard.yaml\nrouting: ../routing.yaml")
    )
    outside = suite.read()
    assert outside.guard == routed.guard
    (tmp_path / "routing.yaml").write_text(text.replace("here", "heer"))
    assert "routing.yaml:3: tasks.answer.active: " in "\n".join(mistakes(suite))
    (tmp_path / "routing.yaml").unlink()
    assert "routing.yaml: no such file" in "\n".join(mistakes(suite))


def test_code_beneath_a_suite_is_no_fixture(suite: BegunSuite) -> None:
    before = suite.read().digest
    (suite.folder / "flow.js").write_text("//")
    (suite.folder / ".hidden").mkdir()
    (suite.folder / ".hidden/data.json").write_text("1")
    assert suite.read().digest == before
    (suite.folder / "data.json").write_text("1")
    assert suite.read().digest != before


def test_a_suite_is_begun_by_command(tmp_path: Path) -> None:
    result = CliRunner().invoke(init_command, [str(tmp_path / "new")])
    assert result.exit_code == 0
    assert str(tmp_path / "new/suite.yaml") in result.output
    assert len(read_suite(tmp_path / "new").cases) == 12
