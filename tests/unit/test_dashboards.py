"""The committed dashboards are what the code makes, ask for metrics that exist, and would load in a Grafana."""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from deploy.pages.__main__ import DASHBOARDS, GRAFANA, pages
from pipeline.core import metrics
from tests.support.dashboards import expressions, filled
from tests.support.prometheus import metrics_in, mistakes_of, promtool, runbook_sections

FILES = sorted(GRAFANA.glob("*.json"))
NAMES = ["overview", "pipeline", "lag", "lookup", "embedding", "sources", "guard", "evals"]
UNITS = {"none", "short", "percentunit", "s", "bytes", "Bps", "cps", "reqps", "currencyUSD"}
"""Those of Grafana's list that are used."""

WORD, NUMBER, TEXT = {"type": "string", "minLength": 1}, {"type": "number"}, {"type": "string"}
PLACE = {name: {"type": "integer", "minimum": 0} for name in "xywh"}
LINK = {
    "type": "object",
    "required": ["title", "type", "url", "tags", "asDropdown", "includeVars", "keepTime", "targetBlank", "tooltip"],
}
QUERY = {
    "type": "object",
    "required": ["refId", "expr", "datasource"],
    "properties": {"refId": {"pattern": "^[A-Z]$"}, "expr": WORD, "format": {"enum": ["table", "time_series"]}},
}
PANEL = {
    "type": "object",
    "required": ["id", "type", "title", "gridPos"],
    "properties": {
        "id": {"type": "integer", "minimum": 1},
        "type": {"enum": ["row", "timeseries", "table", "state-timeline", "bargauge"]},
        "title": WORD,
        "gridPos": {"type": "object", "required": list("xywh"), "properties": PLACE},
        "links": {"type": "array", "items": LINK},
        "targets": {"type": "array", "minItems": 1, "maxItems": 26, "items": QUERY},
    },
    "if": {"properties": {"type": {"not": {"const": "row"}}}},
    "then": {
        "required": ["targets", "fieldConfig", "options", "description", "datasource"],
        "properties": {
            "description": WORD,
            "fieldConfig": {
                "required": ["defaults", "overrides"],
                "properties": {
                    "defaults": {
                        "required": ["unit", "thresholds"],
                        "properties": {
                            "unit": {"enum": sorted(UNITS)},
                            "thresholds": {
                                "properties": {
                                    "steps": {
                                        "minItems": 1,
                                        "items": {"required": ["color", "value"]},
                                        "prefixItems": [{"properties": {"value": {"const": None}}}],
                                    }
                                }
                            },
                        },
                    }
                },
            },
        },
    },
}
DASHBOARD = {
    "type": "object",
    "required": ["uid", "title", "schemaVersion", "panels", "templating", "time", "tags", "links"],
    "properties": {
        "uid": {"pattern": "^ctxpipe-[a-z]+$", "maxLength": 40},
        "title": WORD,
        "description": WORD,
        "schemaVersion": {"type": "integer", "minimum": 36},
        "links": {"type": "array", "minItems": 2, "items": LINK},
        "panels": {"type": "array", "minItems": 3, "items": PANEL},
        "templating": {"properties": {"list": {"items": {"required": ["name", "type", "query", "current"]}}}},
    },
}
"""What Grafana's own types (@grafana/schema) ask of a dashboard, as far as these use it."""


def read(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def test_what_is_committed_is_what_the_code_makes() -> None:
    """`python -m deploy.pages` writes it."""
    for file, text in pages().items():
        assert file.read_text() == text, f"{file.name} is not up to date"
    assert sorted(file.stem for file in FILES) == sorted(NAMES) == sorted(DASHBOARDS)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_it_is_a_dashboard(file: Path) -> None:
    board = read(file)
    jsonschema.Draft202012Validator(DASHBOARD).validate(board)
    assert board["uid"] == f"ctxpipe-{file.stem}"
    names = [variable["name"] for variable in board["templating"]["list"]]
    assert names[:3] == ["datasource", "runbook", "namespace"]
    numbers = [panel["id"] for panel in board["panels"]]
    assert len(numbers) == len(set(numbers))
    for panel in board["panels"]:
        values = [
            step["value"]
            for step in panel.get("fieldConfig", {}).get("defaults", {}).get("thresholds", {}).get("steps", [])
        ]
        assert values[1:] == sorted(values[1:]), panel["title"]
        letters = [target["refId"] for target in panel.get("targets", [])]
        assert len(letters) == len(set(letters)), panel["title"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_panels_lie_beside_each_other_and_none_over_another(file: Path) -> None:
    places = [(panel["title"], panel["gridPos"]) for panel in read(file)["panels"]]
    assert all(place["x"] + place["w"] <= 24 for _, place in places)
    for (one, a), (other, b) in combinations(places, 2):
        apart = (
            a["x"] + a["w"] <= b["x"]
            or b["x"] + b["w"] <= a["x"]
            or a["y"] + a["h"] <= b["y"]
            or b["y"] + b["h"] <= a["y"]
        )
        assert apart, f"{one} lies over {other}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_it_asks_for_metrics_and_labels_that_exist(file: Path) -> None:
    board = read(file)
    variables = {variable["name"] for variable in board["templating"]["list"]} | {"__rate_interval"}
    for title, expression in expressions(board):
        assert mistakes_of(re.sub(r"\$\w+", "x", expression)) == [], title
        assert set(re.findall(r"\$(\w+)", expression)) <= variables, title
        assert 'namespace=~"$namespace"' in expression or "label_values" in expression, title


def test_promtool_parses_every_expression(tmp_path: Path) -> None:
    """As recording rules, the variables filled in as Grafana would."""
    asked = [(file.stem, *one) for file in FILES for one in expressions(read(file)) if "label_values" not in one[1]]
    rules = [{"record": f"panel:{number}", "expr": filled(text)} for number, (_, _, text) in enumerate(asked)]
    page = tmp_path / "panels.yml"
    page.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    code, told = promtool("check", "rules", page)
    assert code == 0, told
    assert len(asked) > 100


def test_every_metric_is_shown_somewhere() -> None:
    shown = set().union(*(metrics_in(expression) for file in FILES for _, expression in expressions(read(file))))
    assert {definition.name for definition in metrics.DEFINITIONS} - shown == set()


def test_links_lead_to_headings_of_the_runbook() -> None:
    headings = set(runbook_sections())
    for file in FILES:
        board = read(file)
        links = [link["url"] for panel in board["panels"] for link in panel.get("links", [])]
        assert links, file.name
        for url in links:
            assert re.fullmatch(r"\$\{runbook\}#(.+)", url), url
            assert url.partition("#")[2] in headings, f"{file.name}: {url}"
