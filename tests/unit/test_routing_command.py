"""`ctxpipe route`: files edited as a person would, promoted only by evidence, and shown as they are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pipeline import cli
from pipeline.commands._check_guard import check_guard
from pipeline.core.config import load
from pipeline.guard.evidence import Evidence
from pipeline.guard.routing.editing import edited, written
from pipeline.guard.routing.file import printed_schema
from schemas.yaml_file import read_yaml
from tests.support.routing_world import RoutingWorld, proves

ROUTING = """\
# who answers what; changed by pull requests only
version: 1
tasks:
  # rebooking at the gate
  rebook:
    active: old  # since spring
    override_reason: the first model of this task
    others: [new, here]  # if it fails
    limits:
      malformed_share_max: 0.02  # 2 of 100
      calls_min: 50

    # tried since Monday
    candidate: {endpoint: new, share: 0.1}

  delay: {active: old, override_reason: the first model of this task}
"""
GUARD = """\
endpoints:
  - {name: old, url: "http://127.0.0.1:1/v1", model: m, api_key: "${NOBODY_HAS_IT}"}
  - {name: new, url: "http://127.0.0.1:1/v1", model: m}
  - {name: here, url: "http://127.0.0.1:1/v1", model: tiny, price: local-cpu}
routes: {"*": {primary: old}}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "routing.yaml").write_text(ROUTING)
    (tmp_path / "guard.yaml").write_text(GUARD)
    (tmp_path / "evidence").mkdir()
    keep(proves(task="rebook"))
    return tmp_path


def keep(evidence: Evidence, name: str = "evidence/new.json") -> str:
    content = evidence.model_dump_json().encode()
    Path(name).write_bytes(content)
    return hashlib.sha256(content).hexdigest()


Route = Callable[..., tuple[int, str, str]]


@pytest.fixture
def route(capsys: pytest.CaptureFixture[str]) -> Route:
    """(exit code, output, errors)."""

    def run(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.run(["route", *words, "--guard", "guard.yaml"])
        return (code, *capsys.readouterr())

    return run


PROMOTE = ("promote", "rebook", "new", "--evidence", "evidence/new.json", "--file", "routing.yaml")


def test_promotion_edits_what_changes_and_nothing_else(folder: Path, route: Route) -> None:
    code, out, err = route(*PROMOTE)
    assert (code, err.count("is changed")) == (0, 1)
    assert "+    active: new  # since spring" in out
    sha = hashlib.sha256(Path("evidence/new.json").read_bytes()).hexdigest()
    assert (
        Path("routing.yaml").read_text()
        == f"""\
# who answers what; changed by pull requests only
version: 1
tasks:
  # rebooking at the gate
  rebook:
    active: new  # since spring
    previous: old
    evidence: {{file: evidence/new.json, sha256: {written(sha)}}}
    others: [old, here]  # if it fails
    limits:
      malformed_share_max: 0.02  # 2 of 100
      calls_min: 50

    # tried since Monday

  delay: {{active: old, override_reason: the first model of this task}}
"""
    )
    assert route("check", "routing.yaml")[0] == 0


def test_rollback_is_the_way_back_and_needs_no_evidence(folder: Path, route: Route) -> None:
    route(*PROMOTE)
    code, _, _ = route("rollback", "rebook", "--reason", "it invents gates", "--file", "routing.yaml")
    assert code == 0
    task = yaml.safe_load(Path("routing.yaml").read_text())["tasks"]["rebook"]
    assert (task["active"], task["override_reason"]) == ("old", "rolled back from new: it invents gates")
    assert task["others"] == ["new", "here"]
    assert not {"previous", "evidence"} & set(task)
    assert "# since spring" in Path("routing.yaml").read_text()
    assert route("check", "routing.yaml")[0] == 0
    code, _, err = route("rollback", "rebook", "--reason", "again", "--file", "routing.yaml")
    assert (code, "does not say who was active" in err) == (2, True)


@pytest.mark.parametrize(
    ("evidence", "told"),
    [
        ({"verdict": "not_better", "passed": False, "why": "it is worse by 2 points"}, "it is worse by 2 points"),
        ({"candidate": "here"}, "proves here"),
        ({"task": "delay"}, "is of the task 'delay'"),
    ],
)
def test_what_is_not_proved_is_not_promoted(folder: Path, route: Route, evidence: dict[str, Any], told: str) -> None:
    keep(proves(**{"task": "rebook", **evidence}))
    code, out, err = route(*PROMOTE)
    assert (code, out) == (1, "")
    assert told in err
    assert Path("routing.yaml").read_text() == ROUTING


def test_mistakes_of_a_command_line_are_told(folder: Path, route: Route) -> None:
    for words, told in (
        (("promote", "rebok", "new"), "there is no task 'rebok'; did you mean rebook?"),
        (("promote", "rebook", "nwe"), "the guard has no endpoint 'nwe'; did you mean new?"),
        (("promote", "rebook", "old"), "routing.yaml:6: 'old' is the active model of 'rebook' already"),
    ):
        code, _, err = route(*words, "--evidence", "evidence/new.json", "--file", "routing.yaml")
        assert (code, told in err) == (2, True), err
    assert route("promote", "rebook", "new", "--evidence", "gone.json", "--file", "routing.yaml")[0] == 1
    code, _, err = route("check")
    assert (code, "guard.yaml names no routing file" in err) == (2, True)
    assert Path("routing.yaml").read_text() == ROUTING


def test_a_dry_run_writes_nothing(folder: Path, route: Route) -> None:
    code, out, err = route(*PROMOTE, "--dry-run")
    assert (code, "+    active: new" in out, "nothing was written" in err) == (0, True, True)
    assert Path("routing.yaml").read_text() == ROUTING
    assert sorted(path.name for path in folder.iterdir()) == ["evidence", "guard.yaml", "routing.yaml"]


def test_check_tells_what_a_service_would_refuse(folder: Path, route: Route) -> None:
    route(*PROMOTE)
    Path("evidence/new.json").write_text("{}")
    code, out, err = route("check", "routing.yaml", "--json")
    assert code == 1
    told = json.loads(out)
    assert (told["ok"], told["refused"]) == (False, {"rebook": "evidence_digest"})
    assert err.startswith("routing.yaml:6: task 'rebook': evidence/new.json: is not the evidence that was reviewed")
    Path("routing.yaml").write_text(ROUTING.replace("calls_min", "call_min"))
    assert route("check", "routing.yaml")[0] == 2


def test_a_limit_on_costs_needs_a_price(folder: Path, route: Route) -> None:
    Path("routing.yaml").write_text(ROUTING.replace("calls_min: 50", "cost_per_call_max: 0.1"))
    code, _, err = route(*PROMOTE)
    assert (code, "nobody knows what 'new' costs" in err) == (1, True)


async def test_show_tells_what_is_in_force(tmp_path: Path, route: Route, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "guard.yaml").write_text(GUARD)
    made = RoutingWorld(tmp_path, old=[], new=[])
    made.files.write({"active": "old"})
    await made.run(made.open().close())
    made.files.write({"active": "new", "previous": "old", "override_reason": "[bold]because of reasons[/bold]"})
    words = ("show", "routing.yaml", "--state", str(made.files.state))
    told = json.loads(route(*words, "--json")[1])
    assert (told["tasks"]["t"]["active"], told["tasks"]["t"]["in_force"]) == ("new", "old")
    out = route(*words)[1]
    assert "[bold]because" in out.replace("\n", "")


def test_the_schema_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["route", "schema"]) == 0
    assert capsys.readouterr().out == printed_schema()


def test_neighbours_in_a_flow_go_together() -> None:
    text = "tasks: {t: {a: 1, evidence: 2, active: x, previous: 3, c: 4}}"
    changes = {"a": None, "evidence": None, "previous": None, "c": None, "new": 5}
    assert edited(text, "t", changes) == "tasks: {t: {active: x, new: 5}}"


NAMES = st.sampled_from(["old", "new", "a name", "yes", "1e3", "ключ", 'with "quotes"', "- dash", "#no"])
VALUES = st.recursive(NAMES | st.integers(-5, 5) | st.booleans(), lambda inner: st.lists(inner, max_size=3))


@given(
    flow=st.booleans(),
    there=st.sets(st.sampled_from(["previous", "evidence", "limits", "others"])),
    order=st.permutations(["active", "previous", "evidence", "limits", "others"]),
    comments=st.lists(st.booleans(), min_size=5, max_size=5),
    changes=st.dictionaries(
        st.sampled_from(["active", "previous", "evidence", "others", "override_reason"]), st.none() | VALUES
    ),
    ends=st.sampled_from(["", "\n", "\n\n  # the end\n", "\n  u: {active: b}\n"]),
)
def test_an_edited_file_says_what_was_wanted(
    flow: bool, there: set[str], order: list[str], comments: list[bool], changes: dict[str, Any], ends: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    if changes.get("active", "x") is None:
        changes["active"] = "x"
    values = {
        "active": "a",
        "previous": "b",
        "evidence": {"file": "f", "sha256": "0"},
        "limits": {"x": 1},
        "others": ["c"],
    }
    kept = {key: values[key] for key in order if key == "active" or hash(key) % 2}
    if flow:
        body = "{" + ", ".join(f"{key}: {written(value)}" for key, value in kept.items()) + "}"
    else:
        parts = [
            _block(key, value) + ("  # why" if told else "")
            for (key, value), told in zip(kept.items(), comments, strict=False)
        ]
        body = "\n    # before\n" + "\n".join(parts)
    text = f"version: 1\ntasks:\n  t: {body}{ends}"
    path = tmp_path_factory.mktemp("edited") / "routing.yaml"
    path.write_text(text)
    before = read_yaml(path).data
    path.write_text(edited(text, "t", changes))
    wanted = {key: value for key, value in {**before["tasks"]["t"], **changes}.items() if value is not None}
    assert read_yaml(path).data == {**before, "tasks": {**before["tasks"], "t": wanted}}
    if not flow:
        assert path.read_text().count("# before") == 1


def _block(key: str, value: Any) -> str:
    if isinstance(value, dict):
        inner = "\n".join(f"      {name}: {written(one)}" for name, one in value.items())
        return f"    {key}:\n{inner}"
    if isinstance(value, list):
        return f"    {key}:\n" + "\n".join(f"      - {written(one)}" for one in value)
    return f"    {key}: {written(value)}"


async def test_preflight_tells_what_a_service_would_refuse(folder: Path, route: Route) -> None:
    """Nothing listens at the endpoints; of the routing all is told that `route check` tells."""
    guard = GUARD.replace(', api_key: "${NOBODY_HAS_IT}"', "").replace("\n", "\n  ")
    servers = "kafka: {bootstrap_servers: '127.0.0.1:9092'}\nredis: {url: 'redis://127.0.0.1:6379/0'}\n"
    (folder / "ctxpipe.yaml").write_text(f"{servers}guard:\n  {guard}\n  routing: routing.yaml\n")

    async def findings() -> list[tuple[str, str]]:
        found = await check_guard(load(folder / "ctxpipe.yaml").guard)
        return [(one.severity, one.message) for one in found if one.subject == "guard: routing"]

    assert await findings() == [("ok", "who answers: delay: old, rebook: old")]
    assert route(*PROMOTE)[0] == 0
    assert await findings() == [("ok", "who answers: delay: old, rebook: new")]
    (folder / "evidence" / "new.json").unlink()
    ((severity, text),) = await findings()
    assert severity == "unfit"
    assert "the evidence can't be read" in text
    (folder / "routing.yaml").write_text("version: 1\n")
    assert [severity for severity, _ in await findings()] == ["unfit"]
