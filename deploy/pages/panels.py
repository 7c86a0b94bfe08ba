"""Building blocks of dashboards: panels, rows, and the JSON that Grafana loads."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

SCHEMA_VERSION = 39
"""Of Grafana 11; later ones convert it when they load it."""
GRID_COLUMNS = 24
ALL = ".*"
RUNBOOK = "deploy/runbook.md"
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}

Kind = Literal["timeseries", "table", "state-timeline", "bargauge"]
Colour = Literal["green", "yellow", "orange", "red", "blue", "text"]


@dataclass(frozen=True)
class Query:
    """PromQL, and how its series are called."""

    expression: str
    legend: str = ""


@dataclass(frozen=True)
class Panel:
    """`unit` as Grafana calls it. `steps`: colours from a value on; the first begins at the bottom. `heading`: of the
    runbook, as its anchor. `names`: words for values, such as 1 → up. `stacked`: what adds up."""

    title: str
    unit: str
    queries: Sequence[Query]
    told: str
    kind: Kind = "timeseries"
    steps: Sequence[tuple[float | None, Colour]] = ((None, "green"),)
    heading: str = ""
    width: int = 8
    height: int = 7
    names: Mapping[str, tuple[str, Colour]] = field(default_factory=dict)
    stacked: bool = False
    smallest: float | None = 0.0
    logarithmic: bool = False


@dataclass(frozen=True)
class Row:
    title: str
    panels: Sequence[Panel]


@dataclass(frozen=True)
class Choice:
    """A variable: the values of a label of a metric, of which all are chosen at first."""

    name: str
    metric: str

    def matcher(self) -> str:
        return f'{self.name}=~"${self.name}"'


NAMESPACE = Choice("namespace", "up")


@dataclass(frozen=True)
class Dashboard:
    """`uid` never changes: links and bookmarks name it."""

    uid: str
    title: str
    told: str
    rows: Sequence[Row]
    choices: Sequence[Choice] = ()

    def queries(self) -> Iterator[tuple[str, Query]]:
        """(title of the panel, query)"""
        return ((panel.title, query) for row in self.rows for panel in row.panels for query in panel.queries)


def as_json(dashboard: Dashboard) -> str:
    """As it is committed and provisioned."""
    return json.dumps(_dashboard(dashboard), indent=1, ensure_ascii=False) + "\n"


def _dashboard(dashboard: Dashboard) -> dict[str, Any]:
    return {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "description": dashboard.told,
        "tags": ["ctxpipe"],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timepicker": {},
        "timezone": "browser",
        "links": [_all_dashboards(), _to_runbook("Runbook", "")],
        "templating": {"list": _variables(dashboard)},
        "annotations": {"list": [_firing()]},
        "panels": list(_panels(dashboard.rows)),
    }


def _all_dashboards() -> dict[str, Any]:
    link = {"title": "ctxpipe", "type": "dashboards", "tags": ["ctxpipe"], "asDropdown": True, "url": ""}
    return {**link, "includeVars": True, "keepTime": True, "targetBlank": False, "icon": "external link", "tooltip": ""}


def _to_runbook(title: str, heading: str) -> dict[str, Any]:
    link = {"title": title, "type": "link", "tags": [], "asDropdown": False}
    link["url"] = f"${{runbook}}#{heading}" if heading else "${runbook}"
    return {**link, "includeVars": False, "keepTime": False, "targetBlank": True, "icon": "doc", "tooltip": ""}


def _variables(dashboard: Dashboard) -> list[dict[str, Any]]:
    source = {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}
    hidden = {"name": "runbook", "type": "constant", "query": RUNBOOK, "hide": 2, "skipUrlSync": True}
    hidden["current"] = {"text": RUNBOOK, "value": RUNBOOK}
    chosen = {"text": "default", "value": "default"}
    choices = [_choice(one, narrowed=one is not NAMESPACE) for one in (NAMESPACE, *dashboard.choices)]
    return [{**source, "hide": 0, "refresh": 1, "regex": "", "current": chosen}, hidden, *choices]


def _choice(choice: Choice, narrowed: bool) -> dict[str, Any]:
    within = f"{{{NAMESPACE.matcher()}}}" if narrowed else '{job=~".*ctxpipe.*"}'
    query = f"label_values({choice.metric}{within}, {choice.name})"
    return {
        "name": choice.name,
        "label": choice.name,
        "type": "query",
        "datasource": DATASOURCE,
        "definition": query,
        "query": {"query": query, "refId": "values"},
        "refresh": 2,
        "sort": 1,
        "hide": 0,
        "regex": "",
        "multi": True,
        "includeAll": True,
        "allValue": ALL,
        "current": {"text": ["All"], "value": ["$__all"], "selected": True},
    }


def _firing() -> dict[str, Any]:
    return {
        "name": "Pages",
        "enable": True,
        "iconColor": "red",
        "datasource": DATASOURCE,
        "expr": 'ALERTS{alertname=~"Ctxpipe.*", alertstate="firing", severity="page", namespace=~"$namespace"}',
        "titleFormat": "{{alertname}}",
        "step": "30s",
    }


def _panels(rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    number, top = 0, 0
    for row in rows:
        number += 1
        place = {"x": 0, "y": top, "w": GRID_COLUMNS, "h": 1}
        yield {
            "id": number, "type": "row", "title": row.title, "collapsed": False, "panels": [], "gridPos": place
        }  # fmt: skip
        top, left, tallest = top + 1, 0, 0
        for panel in row.panels:
            if left + panel.width > GRID_COLUMNS:
                top, left, tallest = top + tallest, 0, 0
            number += 1
            yield _panel(panel, number, {"x": left, "y": top, "w": panel.width, "h": panel.height})
            left, tallest = left + panel.width, max(tallest, panel.height)
        top += tallest


def _panel(panel: Panel, number: int, place: Mapping[str, int]) -> dict[str, Any]:
    made: dict[str, Any] = {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.told,
        "datasource": DATASOURCE,
        "gridPos": place,
        "targets": [_target(panel.kind, index, query) for index, query in enumerate(panel.queries)],
        "fieldConfig": {"defaults": _defaults(panel), "overrides": []},
        "options": _OPTIONS[panel.kind],
    }
    if panel.heading:
        made["links"] = [_to_runbook("Runbook", panel.heading)]
    if panel.kind == "table":
        hidden = {"Time": True, "__name__": True, "job": True, "alertstate": True}
        made["transformations"] = [{"id": "organize", "options": {"excludeByName": hidden}}]
    return made


def _target(kind: Kind, index: int, query: Query) -> dict[str, Any]:
    at_once = kind in ("table", "bargauge")
    return {
        "refId": chr(ord("A") + index),
        "datasource": DATASOURCE,
        "expr": query.expression,
        "legendFormat": query.legend or "__auto",
        "editorMode": "code",
        "instant": at_once,
        "range": not at_once,
        "format": "table" if kind == "table" else "time_series",
    }


def _defaults(panel: Panel) -> dict[str, Any]:
    steps = [{"color": colour, "value": value} for value, colour in panel.steps]
    found: dict[str, Any] = {
        "unit": panel.unit,
        "color": {"mode": "palette-classic" if panel.kind == "timeseries" else "thresholds"},
        "thresholds": {"mode": "absolute", "steps": steps},
        "mappings": [_mapping(panel.names)] if panel.names else [],
    }
    if panel.smallest is not None and not panel.logarithmic:
        found["min"] = panel.smallest
    if panel.kind == "timeseries":
        found["custom"] = {
            "lineWidth": 1,
            "fillOpacity": 20 if panel.stacked else 0,
            "showPoints": "never",
            "spanNulls": False,
            "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
            "thresholdsStyle": {"mode": "line" if len(panel.steps) > 1 else "off"},
            "scaleDistribution": {"type": "log", "log": 10} if panel.logarithmic else {"type": "linear"},
        }
    return found


def _mapping(names: Mapping[str, tuple[str, Colour]]) -> dict[str, Any]:
    options = {value: {"text": text, "color": colour, "index": 0} for value, (text, colour) in names.items()}
    return {"type": "value", "options": options}


_OPTIONS: Mapping[Kind, dict[str, Any]] = {
    "timeseries": {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "bargauge": {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "displayMode": "basic",
        "orientation": "horizontal",
        "showUnfilled": True,
        "minVizWidth": 8,
        "minVizHeight": 16,
        "valueMode": "color",
    },
    "table": {
        "showHeader": True,
        "cellHeight": "sm",
        "footer": {"show": False, "reducer": ["sum"], "countRows": False},
    },
    "state-timeline": {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": False, "calcs": []},
        "tooltip": {"mode": "single", "sort": "none"},
        "mergeValues": True,
        "showValue": "never",
        "rowHeight": 0.8,
        "alignValue": "left",
    },
}
