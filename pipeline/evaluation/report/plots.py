"""The plots of the page, as SVG of numbers and escaped labels; colours and fonts are the style sheet's."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.ops.space_measures import percentile

WIDTH, ROW, LABEL, PLOT_HEIGHT = 640, 26, 110, 180
POINTS_MAX = 400
"""Dots of one row: more can't be told apart."""


@dataclass(frozen=True, slots=True)
class Bar:
    """`now` and `before` of 0 to 1."""

    label: str
    now: float
    before: float | None
    told: str


def bars(title: str, rows: Sequence[Bar]) -> str:
    """A row a kind: how full it is now, and a mark where it was."""
    parts = []
    for at, row in enumerate(rows):
        top = at * ROW
        length = _x(row.now)
        parts.append(_label(row.label, top))
        parts.append(f'<rect class="bar" x="{LABEL}" y="{top + 5}" width="{length:.1f}" height="15"/>')
        if row.before is not None:
            parts.append(
                f'<rect class="was" x="{LABEL + _x(row.before) - 1:.1f}" y="{top + 2}" width="2" height="21"/>'
            )
        parts.append(f'<text class="figure" x="{WIDTH + 6}" y="{top + 17}">{html.escape(row.told)}</text>')
    return _svg(title, len(rows) * ROW, parts)


def strips(title: str, rows: Mapping[str, Sequence[float]], unit: str) -> str:
    """A row a kind: a dot a case from 0 to the greatest of all, and a mark at the half and at 95 of 100."""
    greatest = max((value for values in rows.values() for value in values), default=0.0) or 1.0
    parts = []
    for at, (label, values) in enumerate(rows.items()):
        top, ordered = at * ROW, sorted(values)
        parts.append(_label(label, top))
        for value in _thinned(ordered):
            parts.append(f'<circle class="dot" cx="{LABEL + _x(value / greatest):.1f}" cy="{top + 12}" r="3"/>')
        for share in (0.5, 0.95):
            x = LABEL + _x(percentile(ordered, share) / greatest)
            parts.append(f'<rect class="was" x="{x - 1:.1f}" y="{top + 2}" width="2" height="21"/>')
        told = f"{percentile(ordered, 0.5):,.4g} / {percentile(ordered, 0.95):,.4g} {unit}"
        parts.append(f'<text class="figure" x="{WIDTH + 6}" y="{top + 17}">{html.escape(told)}</text>')
    return _svg(title, len(rows) * ROW, parts)


def lines(title: str, names: Sequence[str], series: Mapping[str, Sequence[float | None]]) -> str:
    """A line a series over `names`, from the smallest to the greatest of all values; a gap where there is none."""
    known = [value for values in series.values() for value in values if value is not None]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    low, high = (low - 0.01, high + 0.01) if low == high else (low, high)
    step = (WIDTH - LABEL) / max(len(names) - 1, 1)

    def place(at: int, value: float) -> tuple[float, float]:
        return LABEL + at * step, 10 + (PLOT_HEIGHT - 20) * (high - value) / (high - low)

    parts = [_label(f"{high:.3f}", -2), _label(f"{low:.3f}", PLOT_HEIGHT - ROW)]
    for number, (label, values) in enumerate(series.items()):
        points = [place(at, value) for at, value in enumerate(values) if value is not None]
        drawn = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline class="line line{number % 8}" points="{drawn}"/>')
        parts += [f'<circle class="line{number % 8}" cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>' for x, y in points]
        parts.append(
            f'<text class="figure line{number % 8}" x="{WIDTH + 6}" y="{14 + 16 * number}">{html.escape(label)}</text>'
        )
    for at in sorted({0, len(names) - 1} if names else ()):
        place_of = f'text-anchor="{"start" if at == 0 else "end"}" x="{LABEL + at * step:.1f}" y="{PLOT_HEIGHT + 14}"'
        parts.append(f'<text class="axis" {place_of}>{html.escape(names[at])}</text>')
    return _svg(title, max(PLOT_HEIGHT + 20, 16 * len(series) + 20), parts)


def _svg(title: str, height: float, parts: Sequence[str]) -> str:
    name = html.escape(title)
    size = f'viewBox="0 0 {WIDTH + 160} {height:.0f}" width="{WIDTH + 160}" height="{height:.0f}"'
    drawn = f'<svg role="img" aria-label="{name}" {size}>{"".join(parts)}</svg>'
    return f"<figure><figcaption>{name}</figcaption>{drawn}</figure>"


def _label(text: str, top: float) -> str:
    return f'<text class="label" x="{LABEL - 8}" y="{top + 17:.0f}" text-anchor="end">{html.escape(text)}</text>'


def _x(share: float) -> float:
    return (WIDTH - LABEL) * min(max(share, 0.0), 1.0)


def _thinned(ordered: Sequence[float]) -> Sequence[float]:
    step = -(-len(ordered) // POINTS_MAX) or 1
    return [*ordered[::step], *ordered[-1:]]
