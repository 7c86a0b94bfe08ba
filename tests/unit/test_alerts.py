"""The alerts fire when they should and only then, use metrics that exist, and lead to the runbook.

promtool runs the unit tests beside the rules; here it runs them again with rules that are broken on purpose, so that a
rule without a test, or with one that can't fail, is found.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from deploy.pages.metric_list import OTHERS, by_role, with_metrics
from pipeline.cli import cli
from pipeline.core import metrics
from pipeline.ops.lag import explaining
from tests.support.prometheus import (
    PROMETHEUS,
    RULE_FILES,
    RULE_TESTS,
    RUNBOOK,
    alerts,
    mistakes_of,
    promtool,
    records,
    rules,
    runbook_sections,
)

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
    for rule in rules(file):
        assert mistakes_of(str(rule["expr"])) == [], rule.get("alert") or rule["record"]


def test_a_wrong_metric_or_label_is_found() -> None:
    assert mistakes_of('sum by (sourc) (rate(ctxpipe_conector_events_total{table="x"}[5m]))') == [
        "there is no metric ctxpipe_conector_events_total",
        "no metric there has the label sourc",
        "no metric there has the label table",
    ]
    assert mistakes_of("rate(ctxpipe_lookup_seconds[5m])") == ["there is no metric ctxpipe_lookup_seconds"]
    assert mistakes_of("rate(ctxpipe_lookup_seconds_count[5m])") == []


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


def test_every_alert_leads_to_a_heading_of_the_runbook_and_every_heading_is_one_of_an_alert() -> None:
    """Which says what one sees, where to look and what to do, and names the alerts that lead to it."""
    sections = runbook_sections()
    led_to: dict[str, set[str]] = {}
    for name, alert in alerts().items():
        page, _, anchor = alert["annotations"]["runbook_url"].partition("#")
        assert page == "deploy/runbook.md", name
        slos = ("availability", "latency", "freshness", "completeness") if "$labels.slo" in anchor else ("",)
        for slo in slos:
            led_to.setdefault(re.sub(r"\{\{.*?\}\}", slo, anchor), set()).add(name)
    assert set(led_to) - set(sections) == set(), "no such heading"
    with_parts = {anchor for anchor, text in sections.items() if "**Symptom.**" in text}
    assert with_parts == set(led_to)
    for anchor, names in led_to.items():
        text = sections[anchor]
        assert all(f"**{part}.**" in text for part in ("Symptom", "Check", "Action")), anchor
        told = set(re.findall(r"\bCtxpipe\w+", text))
        assert told == names or anchor.startswith("budget-of-"), anchor


def test_links_within_the_runbook_lead_somewhere() -> None:
    text = RUNBOOK.read_text()
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= set(runbook_sections())
    unknown = set(re.findall(r"\bCtxpipe\w+", text)) - set(alerts())
    assert not unknown, f"there is no alert {sorted(unknown)}"


def test_the_objectives_in_the_runbook_are_those_of_the_rules() -> None:
    text = runbook_sections()["objectives"]
    for rule in records():
        if rule["record"] == "ctxpipe:slo_objective:ratio":
            share = float(re.fullmatch(r"vector\((.+)\)", rule["expr"])[1])  # type: ignore[index]
            assert re.search(rf"\| {rule['labels']['slo']} \|.*\| {share * 100:g}% \|", text), rule


def test_the_list_of_metrics_is_up_to_date() -> None:
    """`python -m deploy.pages` writes it."""
    assert with_metrics(RUNBOOK.read_text(), metrics.DEFINITIONS) == RUNBOOK.read_text()
    assert OTHERS not in by_role(metrics.DEFINITIONS), "deploy.pages.metric_list does not know whose metric this is"


def test_what_lag_explains_leads_to_headings_too() -> None:
    tree = ast.parse(Path(explaining.__file__).read_text())
    places: list[ast.AST] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Finding":
            places += node.args[6:]
        elif isinstance(node, ast.FunctionDef) and node.name.endswith("_heading"):
            places += [step for step in ast.walk(node) if isinstance(step, ast.Return)]
    words = [one.value for place in places for one in ast.walk(place) if isinstance(one, ast.Constant)]
    headings = {word for word in words if (isinstance(word, str) and word[:1].isupper()) or word == "cdc_raw fills"}
    known = set(re.findall(r"^### (.+)$", RUNBOOK.read_text(), flags=re.MULTILINE))
    assert len(headings) > 10 and headings - known == set()


def test_commands_in_the_runbook_can_be_typed() -> None:
    """Each exists, with the options that are named."""
    text = RUNBOOK.read_text()
    lines = re.findall(r"`ctxpipe ([^`]+)`", text) + re.findall(r"^ctxpipe ([^#\n]+)", text, flags=re.MULTILINE)
    assert len(lines) > 20
    for line in lines:
        words = line.split()
        command: click.Command | None = cli.get_command(click.Context(cli), words[0])
        for word in words[1:]:
            if isinstance(command, click.Group) and word.islower():
                command = command.get_command(click.Context(command), word)
        assert command is not None, line
        known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
        assert {word for word in words if word.startswith("--")} <= known, line
