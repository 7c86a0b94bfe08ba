"""The committed dashboards as a test asks them: what each panel asks Prometheus for."""

from __future__ import annotations

import re
from typing import Any


def expressions(board: dict[str, Any]) -> list[tuple[str, str]]:
    """(where, PromQL) of panels, annotations and variables."""
    found = [(panel["title"], target["expr"]) for panel in board["panels"] for target in panel.get("targets", [])]
    found += [(one["name"], one["expr"]) for one in board["annotations"]["list"]]
    return found + [(one["name"], one["definition"]) for one in board["templating"]["list"] if "definition" in one]


def filled(expression: str) -> str:
    """With all chosen that can be chosen, as Grafana would fill it in."""
    return re.sub(r"\$\w+", ".*", expression.replace("$__rate_interval", "1m"))
