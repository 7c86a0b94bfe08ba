"""The routing file as people write it: what it may say, what is told of mistakes, and what the ladder becomes."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema_rs
import pytest
import yaml

import schemas
from pipeline.core.errors import ConfigError
from pipeline.guard.config import Route
from pipeline.guard.routing.config import RoutingConfig, TaskRouting, route_of, routed
from pipeline.guard.routing.file import printed_schema, read_guard, read_routing, routing_json_schema
from tests.support.routing_world import guard_config

SHA = "5" * 64
WHOLE = f"""\
version: 1
demands: {{suite_digest: "{SHA}", claim_points_min: 2}}
tasks:
  rebook:
    active: new
    previous: old
    evidence: {{file: evidence/new.json, sha256: "{SHA}"}}
    limits: {{malformed_share_max: 0.02, latency_p95_ms_max: 900, cost_per_call_max: 0.01, calls_min: 50}}
    candidate: {{endpoint: next, share: 0.1, cost_per_hour_max: 2}}
    local: [here]
    retries_max: 0
  "*":
    active: old
    override_reason: the first model of all
"""
GUARD = guard_config("old", "new", "next", "here", route={"others": ("new",), "local": ("here",), "retries_max": 2})


def told(path: Path, text: str) -> list[str]:
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_routing(path, GUARD)
    return caught.value.mistakes


def test_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "routing.yaml"
    path.write_text(WHOLE)
    file = read_routing(path, GUARD)
    task = file.config.tasks["rebook"]
    assert (task.active, task.previous, task.limits.window_calls) == ("new", "old", 200)
    assert file.place("rebook", "active") == f"{path}:5"
    jsonschema_rs.validator_for(routing_json_schema()).validate(yaml.safe_load(WHOLE))


def test_the_published_schema_is_that_of_the_models() -> None:
    published = Path(schemas.__file__).parent / "routing.schema.json"
    assert published.read_text() == printed_schema(), "run: ctxpipe route schema > schemas/routing.schema.json"
    wrong = {"version": 1, "tasks": {"t": {"active": "a", "candidate": {"endpoint": "b", "share": 2}}}}
    assert not jsonschema_rs.validator_for(json.loads(published.read_text())).is_valid(wrong)


def test_all_mistakes_at_once_with_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "routing.yaml"
    text = f"""\
version: 1
tasks:
  rebook:
    activ: new
    limits: {{malformed_share_max: 2}}
  delay:
    active: nwe
    previous: gone
    others: [old, old]
    candidate: {{endpoint: nwe, share: 0.5}}
    evidence: {{file: e.json, sha256: "{SHA}"}}
    override_reason: because I say so
    limits: {{calls_min: 500}}
"""
    found = told(path, text)
    expected = [
        ":3: tasks.rebook: 'active' is missing",
        ":4: tasks.rebook.activ: unknown key; did you mean active?",
        ":5: tasks.rebook.limits.malformed_share_max: must be less than 1.0, not 2",
        ":7: tasks.delay.active: the guard has no endpoint 'nwe'; did you mean new?",
        ":8: tasks.delay.previous: the guard has no endpoint 'gone'; known: here, new, next, old",
        ":9: tasks.delay.others.1: 'old' is in this task's ladder already",
        ":10: tasks.delay.candidate.endpoint: is 'nwe', which is the active one already",
        ":10: tasks.delay.candidate.endpoint: the guard has no endpoint 'nwe'",
        ":12: tasks.delay.override_reason: stands beside evidence; keep one of the two",
        ":13: tasks.delay.limits.calls_min: is 500, more than window_calls (200)",
    ]
    assert len(found) == len(expected)
    for line, start in zip(found, expected, strict=True):
        assert line.startswith(f"{path}{start}")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", ": the file is empty"),
        ("[1, 2]", ":1: this is a mapping with version, tasks"),
        ("version: 1\ntasks: {t: {active: old}\n", ":3: not YAML"),
        ("version: 2\ntasks: {t: {active: old}}\n", ":1: version: "),
        ("version: 1\ntasks: {}\n", ":2: tasks: "),
        ("version: 1\ntasks:\n  t: {active: old}\n  t: {active: new}\n", ":4: tasks.t: written twice"),
        ("version: 1\ntasks: {t: {active: old, override_reason: no}}\n", ":2: tasks.t.override_reason: "),
        ("version: 1\ntasks: {t: {active: old, candidate: {endpoint: new, share: .nan}}}\n", ":2: tasks.t.candidate"),
    ],
)
def test_what_is_no_routing_file(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "routing.yaml"
    assert told(path, text)[0].startswith(f"{path}{why}")


def test_a_file_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        read_routing(tmp_path / "routing.yaml")
    (tmp_path / "routing.yaml").write_bytes(b"version: 1\ntasks: \xff\n")
    with pytest.raises(ConfigError, match=":2: not UTF-8"):
        read_routing(tmp_path / "routing.yaml")


@pytest.mark.parametrize("under", ["", "guard:\n  "])
def test_the_guard_is_read_from_a_file_of_its_own_or_from_the_configuration(tmp_path: Path, under: str) -> None:
    path = tmp_path / "guard.yaml"
    endpoint = "endpoints: [{name: old, url: 'http://h/v1', model: m}]"
    path.write_text(f"{under}{endpoint}\n{'  ' if under else ''}routes: {{t: {{primary: old}}}}\n")
    assert read_guard(path).config.routes["t"].primary == "old"
    path.write_text(path.read_text().replace("primary: old", "primary: odl"))
    with pytest.raises(ConfigError, match=r"guard.yaml:\d+: .*'odl'.*old"):
        read_guard(path)


def test_what_the_file_leaves_out_is_as_in_the_guards_own_route() -> None:
    base = Route(primary="old", others=("new",), local=("here",), retries_max=2, hedge_after_s=1)
    plain = route_of(TaskRouting(active="new"), base)
    assert plain == Route(primary="new", others=(), local=("here",), retries_max=2, hedge_after_s=1)
    own = route_of(TaskRouting(active="new", others=("old",), local=(), retries_max=0), base)
    assert own == Route(primary="new", others=("old",), retries_max=0, hedge_after_s=1)
    assert route_of(TaskRouting(active="new"), None) == Route(primary="new")


def test_suites_get_the_active_models_without_evidence() -> None:
    config = RoutingConfig.model_validate(yaml.safe_load(WHOLE))
    found = routed(GUARD, config)
    assert found.routes["rebook"].primary == "new"
    assert (found.routes["*"].primary, found.endpoints) == ("old", GUARD.endpoints)


def test_whoever_checks_a_file_needs_neither_keys_nor_addresses(tmp_path: Path) -> None:
    path = tmp_path / "ctxpipe.yaml"
    path.write_text("""\
kafka: {bootstrap_servers: "${NOT_HERE_EITHER}"}
serve: {data_directory: data}
guard:
  endpoints:
    - {name: old, url: "http://${NO_HOST}/v1", model: m, api_key: "${NOBODY_HAS_THIS_KEY}"}
    - {name: here, model: tiny}
    - {name: new, model: "${NO_SUCH_MODEL}"}
  routes: {t: {primary: old}}
  routing: routing.yaml
  prices: prices.toml
  escalations: {kept_days: 3}
""")
    with pytest.raises(ConfigError, match=r"ctxpipe.yaml:7: guard.endpoints.2.model: .*NO_SUCH_MODEL"):
        read_guard(path)
    path.write_text(path.read_text().replace("${NO_SUCH_MODEL}", "${NO_SUCH_MODEL:-m}"))
    found = read_guard(path)
    assert [(one.name, one.model, one.api_key) for one in found.config.endpoints] == [
        ("old", "m", None), ("here", "tiny", None), ("new", "m", None),
    ]  # fmt: skip
    assert (found.routing, found.data_directory) == (tmp_path / "routing.yaml", tmp_path / "data")
    assert found.prices == tmp_path / "prices.toml"
