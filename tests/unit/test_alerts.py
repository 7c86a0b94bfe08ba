"""The alerts fire when they should and only then, use metrics that exist, and lead to the runbook.

promtool runs the unit tests beside the rules; here it runs them again with rules that are broken on purpose, so that a
rule without a test, or with one that can't fail, is found.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.core import metrics
from tests.support.prometheus import PROMETHEUS, RULE_FILES, RULE_TESTS, alerts, promtool, records, rules

OURS = {definition.name: definition for definition in metrics.DEFINITIONS}
OF_OTHERS = {"up", "process_start_time_seconds"}
ADDED_LABELS = {"namespace", "job", "instance", "slo", "alertname", "le"}
"""By Prometheus, by the cluster, by our own recording rules."""
SILENT = "vector(0) > 1"
LOUD = "vector(1)"
WRONG = "vector(0.4242)"


def test_promtool_finds_no_mistake() -> None:
    for words in (["check", "rules", *RULE_FILES], ["check", "config", PROMETHEUS / "prometheus.yml"]):
        code, told = promtool(*words)
        assert code == 0, told


def test_every_rule_does_what_its_tests_say() -> None:
    code, told = promtool("test", "rules", *RULE_TESTS)
    assert code == 0, told


@pytest.mark.parametrize(("kind", "broken"), [("alert", SILENT), ("alert", LOUD), ("record", WRONG)])
def test_every_rule_has_a_test_that_would_notice(tmp_path: Path, kind: str, broken: str) -> None:
    """An alert that never fires, one that always does, a recording of something else: each is named by a failure."""

    def breaks(rule: dict[str, Any]) -> dict[str, Any]:
        return {**rule, "expr": broken} if kind in rule else rule

    with ThreadPoolExecutor() as threads:
        told = "".join(threads.map(lambda file: failures_with(file, tmp_path, breaks), RULE_TESTS))
    named = set(re.findall(r"\b(?:Ctxpipe[A-Za-z]+|ctxpipe:[a-z0-9_:]+)", told))
    wanted = set(alerts()) if kind == "alert" else {rule["record"] for rule in records()}
    assert wanted <= named, f"no test notices: {sorted(wanted - named)}"


def failures_with(test_file: Path, folder: Path, breaks: Callable[[dict[str, Any]], dict[str, Any]]) -> str:
    """What promtool says of the tests of a file whose rules are changed."""
    tests = yaml.safe_load(test_file.read_text())
    places = []
    for name in tests["rule_files"]:
        original = (test_file.parent / name).resolve()
        changed = yaml.safe_load(original.read_text())
        for group in changed["groups"]:
            group["rules"] = [breaks(rule) for rule in group["rules"]]
        places.append(folder / original.name)
        places[-1].write_text(yaml.safe_dump(changed))
    copy = folder / test_file.name
    copy.write_text(yaml.safe_dump({**tests, "rule_files": [str(place) for place in places]}))
    code, told = promtool("test", "rules", copy)
    return told if code else ""


@pytest.mark.parametrize("file", RULE_FILES, ids=lambda file: file.name)
def test_rules_use_metrics_and_labels_that_exist(file: Path) -> None:
    recorded = {rule["record"] for rule in records()}
    for rule in rules(file):
        expression = str(rule["expr"])
        where = rule.get("alert") or rule["record"]
        names = set(re.findall(r"\bctxpipe[a-z0-9_:]+", re.sub(r'"[^"]*"', '""', expression)))
        unknown = names - recorded - set(OURS)
        assert not unknown, f"{where}: no such metric: {sorted(unknown)}"
        assert names or OF_OTHERS & set(re.findall(r"\w+", expression)) or "vector(" in expression, where
        may = ADDED_LABELS.union(*(OURS[name].labels for name in names if name in OURS))
        used = labels_in(expression)
        assert used <= may, f"{where}: no metric there has the label {sorted(used - may)}"


def labels_in(expression: str) -> set[str]:
    """Of matchers, of `by`, `on` and `group_left`."""
    found = set(re.findall(r'[{,]\s*(\w+)\s*(?:=~|!~|!=|=)\s*"', expression))
    for listed in re.findall(r"\b(?:by|on|group_left|without|ignoring)\s*\(([^)]*)\)", expression):
        found |= {name.strip() for name in listed.split(",") if name.strip()}
    return found


def test_every_alert_says_what_it_is_and_whom_it_wakes() -> None:
    for name, alert in alerts().items():
        assert name.startswith("Ctxpipe"), name
        assert alert["labels"]["severity"] in ("page", "ticket"), name
        told = alert["annotations"]
        assert set(told) == {"summary", "description", "runbook_url"}, name
        assert 10 < len(told["summary"]) < 120 and told["description"].endswith("."), name


def test_the_windows_of_an_objective_ask_the_same() -> None:
    """Expressions differ in their window only, which stands in the name."""
    asked: dict[tuple[str, str], set[str]] = {}
    for rule in records():
        window = re.search(r"(?:rate|increase)(\d+[mhd])$", rule["record"])
        if window is None:
            continue
        spans = set(re.findall(r"\[(\w+)\]", rule["expr"]))
        assert spans == {window[1]}, rule
        kind = rule["record"].removesuffix(window[1])
        asked.setdefault((kind, rule["labels"]["slo"]), set()).add(rule["expr"].replace(f"[{window[1]}]", "[…]"))
    objectives = {rule["labels"]["slo"] for rule in records() if rule["record"] == "ctxpipe:slo_objective:ratio"}
    assert {slo for _, slo in asked} == objectives == {"availability", "latency", "freshness", "completeness"}
    assert all(len(expressions) == 1 for expressions in asked.values()), asked
