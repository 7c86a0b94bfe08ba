"""A comparison as one HTML page that needs nothing else, in the style of the gate's report."""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pipeline.evaluation.compare import Comparison, claim_text
from pipeline.evaluation.report.page import FOLDER as STYLE_FOLDER
from pipeline.evaluation.report.visible import visible
from pipeline.evaluation.statistics.sides import Side

FOLDER = Path(__file__).parent
WIDTH, ROW, LABEL = 640, 30, 130
CHANGED_MAX = 200
VERDICTS = {"better": "better", "not_better": "not better", "inconclusive": "inconclusive"}
LIMITS = {True: ", limits broken", False: ", limits not shown to be kept"}
STYLES = {"better": "pass", "not_better": "regression", "inconclusive": "inconclusive"}
"""Of verdicts, the classes of the report's style sheet."""


def page(found: Comparison, a: Side, b: Side) -> str:
    """The whole document."""
    style = (STYLE_FOLDER / "page.css").read_text(encoding="utf-8")
    kept = found.passed or found.verdict != "better"
    document: str = _template().render(
        found=found,
        a=a,
        b=b,
        claim=claim_text(found.claim_points),
        verdict=VERDICTS[found.verdict] + ("" if kept else LIMITS[bool(found.broken)]),
        verdict_style=STYLES[found.verdict] if kept else "inconclusive",
        style=Markup(style),
        style_digest=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
        plot=Markup(intervals(found)),  # numbers, and labels that are escaped
        changed=found.changed[:CHANGED_MAX],
        changed_left=max(0, len(found.changed) - CHANGED_MAX),
        visible=visible,
    )
    return document


def intervals(found: Comparison) -> str:
    """A row for all pairs and one a kind: the difference, its bounds, and lines at nought and at the claim."""
    rows: list[tuple[str, float, float | None, float | None]] = [("all", found.difference, found.low, found.high)]
    rows += [(one.kind, one.difference, one.low, one.high) for one in found.slices]
    low, high = _range(rows, found.claim_points)

    def x(points: float) -> float:
        return LABEL + (WIDTH - LABEL) * (points - low) / (high - low)

    height = ROW * len(rows)
    parts = [_mark(x(0.0), height, "0")]
    if found.claim_points:
        parts.append(_mark(x(found.claim_points), height, f"{found.claim_points:+g}"))
    for at, (label, difference, least, most) in enumerate(rows):
        middle = at * ROW + ROW / 2
        name = f'<text class="label" x="{LABEL - 8}" y="{middle + 4:.0f}" text-anchor="end">{html.escape(label)}</text>'
        parts.append(name)
        if least is not None and most is not None:
            width = max(x(most) - x(least), 1.0)
            parts.append(f'<rect class="dot" x="{x(least):.1f}" y="{middle - 4:.1f}" width="{width:.1f}" height="8"/>')
        parts.append(f'<circle class="bar" cx="{x(difference):.1f}" cy="{middle:.1f}" r="5"/>')
        told = f"{difference:+.2f}" + ("" if least is None or most is None else f" ({least:+.2f} … {most:+.2f})")
        parts.append(f'<text class="figure" x="{WIDTH + 10}" y="{middle + 4:.0f}">{told}</text>')
    title = "Difference in points, candidate less active"
    size = f'viewBox="0 0 {WIDTH + 190} {height + 20}" width="{WIDTH + 190}" height="{height + 20}"'
    return f'<svg role="img" aria-label="{title}" {size}><title>{title}</title>{"".join(parts)}</svg>'


def _range(rows: Sequence[tuple[str, float, float | None, float | None]], claim: float) -> tuple[float, float]:
    known = [value for _, *values in rows for value in values if value is not None]
    low, high = min(0.0, *known), max(0.0, claim, *known)
    margin = 0.05 * (high - low) or 1.0
    return low - margin, high + margin


def _mark(at: float, height: float, told: str) -> str:
    return (
        f'<rect class="was" x="{at - 0.5:.1f}" y="0" width="1" height="{height}"/>'
        f'<text class="axis" x="{at:.1f}" y="{height + 14}" text-anchor="middle">{told}</text>'
    )


@cache
def _template() -> Any:
    environment = Environment(loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined)
    environment.trim_blocks = environment.lstrip_blocks = True
    return environment.get_template("comparison.html.jinja")
