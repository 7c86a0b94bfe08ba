"""Prometheus for tests: the rules as they are committed, promtool, and a server that scrapes what a test names."""

from __future__ import annotations

import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from deploy.local import install
from pipeline.core import metrics

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
RUNBOOK = ROOT / "deploy" / "runbook.md"
RULE_FILES = sorted((PROMETHEUS / "rules").glob("*.yml"))
RULE_TESTS = sorted((PROMETHEUS / "tests").glob("*.yml"))

OURS = {definition.name: definition for definition in metrics.DEFINITIONS}
OF_OTHERS = {"up": {"role"}, "process_start_time_seconds": {"role"}, "ALERTS": {"severity", "alertstate"}}
"""What Prometheus makes itself, and the library in every role; with their labels."""
ADDED_LABELS = {"namespace", "job", "instance", "slo", "alertname", "le"}
"""By Prometheus, by the cluster, by our own recording rules."""


@cache
def rules(file: Path) -> list[dict[str, Any]]:
    """All rules of a file, of every group."""
    return [rule for group in yaml.safe_load(file.read_text())["groups"] for rule in group["rules"]]


def alerts() -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for file in RULE_FILES for rule in rules(file) if "alert" in rule}


def records() -> list[dict[str, Any]]:
    return [rule for file in RULE_FILES for rule in rules(file) if "record" in rule]


@cache
def promtool_program() -> str:
    install.ensure(["prometheus"])
    return install.prometheus_program("promtool")


def promtool(*words: str | Path, timeout_s: float = 120.0) -> tuple[int, str]:
    """(exit code, all that it said)"""
    done = subprocess.run(
        [promtool_program(), *map(str, words)], capture_output=True, text=True, timeout=timeout_s, check=False
    )
    return done.returncode, done.stdout + done.stderr


def runbook_sections() -> dict[str, str]:
    """Anchor → text up to the next heading; anchors as hosts of Markdown make them."""
    found: dict[str, str] = {}
    for part in re.split(r"^#+ ", RUNBOOK.read_text(), flags=re.MULTILINE)[1:]:
        heading, _, text = part.partition("\n")
        anchor = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        assert anchor not in found, f"two headings have the anchor {anchor}"
        found[anchor] = text
    return found


def mistakes_of(expression: str) -> list[str]:
    """Metrics and labels of a PromQL expression that do not exist; whether it parses, promtool says."""
    recorded = {rule["record"] for rule in records()}
    unquoted = re.sub(r'"[^"]*"', '""', expression)
    names = set(re.findall(r"\bctxpipe[a-z0-9_:]+", unquoted))
    others = set(re.findall(r"\w+", unquoted)) & set(OF_OTHERS)
    series = {name: _series_of(name) for name in names - recorded}
    found = [f"there is no metric {name}" for name, definition in sorted(series.items()) if definition is None]
    if not names and not others and "vector(" not in expression:
        found.append("it asks for no metric")
    may = ADDED_LABELS.union(*(one.labels for one in series.values() if one), *(OF_OTHERS[name] for name in others))
    return found + [f"no metric there has the label {label}" for label in sorted(labels_in(expression) - may)]


def metrics_in(expression: str) -> set[str]:
    """Names as pipeline.core.metrics has them."""
    found = map(_series_of, re.findall(r"\bctxpipe[a-z0-9_:]+", expression))
    return {definition.name for definition in found if definition is not None}


def labels_in(expression: str) -> set[str]:
    """Of matchers, of `by`, `on` and `group_left`."""
    found = set(re.findall(r'[{,]\s*(\w+)\s*(?:=~|!~|!=|=)\s*"', expression))
    for listed in re.findall(r"\b(?:by|on|group_left|without|ignoring)\s*\(([^)]*)\)", expression):
        found |= {name.strip() for name in listed.split(",") if name.strip()}
    return found


def _series_of(name: str) -> metrics.Definition | None:
    """A histogram has three series under names of their own."""
    histogram = OURS.get(re.sub(r"_(bucket|sum|count)$", "", name))
    if histogram is not None and histogram.kind == "histogram":
        return histogram if histogram.name != name else None
    return OURS.get(name)


def series_of(definition: metrics.Definition) -> list[str]:
    """Names under which Prometheus keeps it."""
    if definition.kind == "histogram":
        return [f"{definition.name}_{end}" for end in ("bucket", "sum", "count", "created")]
    return [definition.name, f"{definition.name.removesuffix('_total')}_created"]


def lint(page: bytes) -> list[str]:
    """What promtool finds wrong with the metrics of a page that are ours."""
    done = subprocess.run(
        [promtool_program(), "check", "metrics"], input=page, capture_output=True, timeout=30, check=False
    )
    return [line for line in (done.stdout + done.stderr).decode().splitlines() if "ctxpipe_" in line]
