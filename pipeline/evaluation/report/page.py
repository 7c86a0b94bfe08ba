"""The report as one HTML page that needs nothing else: no script, no address, and a policy that forbids both."""

from __future__ import annotations

import base64
import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pipeline.evaluation.baseline import mean_by_kind
from pipeline.evaluation.gate import Flip, listed
from pipeline.evaluation.report.difference import Pair, side_by_side
from pipeline.evaluation.report.plots import Bar, bars, lines, strips
from pipeline.evaluation.report.reported import STATE_TEXTS, VERDICT_TEXTS, Reported
from pipeline.evaluation.report.visible import cut, output_texts, value_text, visible
from pipeline.evaluation.values import KINDS

FOLDER = Path(__file__).parent
WIDTH, LINES_MAX = 76, 300
OUTPUT_CHARACTERS_MAX, STEPS_CHARACTERS_MAX, TOLD_CHARACTERS_MAX = 20_000, 20_000, 4000
FLIPS_MAX = 200
HISTORY_MAX = 100


@dataclass(frozen=True, slots=True)
class _Shown:
    """A flip as the page has it; all texts are fit to be looked at, and are escaped by the template."""

    id: str
    state: str
    state_text: str
    kind: str
    why: str
    told: Sequence[str]
    pairs: Sequence[Pair]
    steps: str


def page(found: Reported) -> str:
    """The whole document."""
    one = found.judgement
    style = (FOLDER / "page.css").read_text(encoding="utf-8")
    document: str = _template().render(
        found=found,
        one=one,
        verdict_text=VERDICT_TEXTS[one.verdict],
        style=Markup(style),
        style_digest=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
        flips=[_shown(flip) for flip in one.flips[:FLIPS_MAX]],
        flips_left=max(0, len(one.flips) - FLIPS_MAX),
        counts=_counts(found),
        plots=[Markup(plot) for plot in _plots(found)],  # numbers, and labels that plots.py has escaped
        history=found.history[::-1][:HISTORY_MAX],
        visible=visible,
        listed=listed,
    )
    return document


@cache
def _template() -> Any:
    environment = Environment(loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined)
    environment.trim_blocks = environment.lstrip_blocks = True
    return environment.get_template("page.html.jinja")


def _shown(flip: Flip) -> _Shown:
    before, now = output_texts(flip.before, flip.now, OUTPUT_CHARACTERS_MAX)
    checks = [check for check in flip.now.checks if not check.passed] if flip.now else []
    steps = [
        {"what": step.what, "name": step.name, "asked": step.asked, "came": step.came, "at_ms": step.at_ms}
        for step in (flip.now.steps if flip.now else ())
    ]
    return _Shown(
        id=flip.id,
        state=flip.state,
        state_text=STATE_TEXTS[flip.state],
        kind=flip.kind,
        why=visible(flip.why),
        told=[visible(cut(f"{check.check}: {check.told}", TOLD_CHARACTERS_MAX)) for check in checks],
        pairs=side_by_side(before, now, WIDTH, LINES_MAX),
        steps=value_text(steps, STEPS_CHARACTERS_MAX) if steps else "",
    )


def _counts(found: Reported) -> list[tuple[str, int]]:
    one = found.judgement
    return [
        ("cases", one.cases),
        ("passed", one.passed),
        ("failed", one.failed),
        ("accepted", len(one.accepted)),
        ("flipped", len(one.of("regressed", "failed"))),
        ("missing", len(one.of("missing"))),
        ("new", len(one.new)),
        ("improved", len(one.of("improved"))),
        ("other output", len(one.other_output)),
    ]


def _plots(found: Reported) -> list[str]:
    plots = []
    if found.results:
        plots.append(bars("Mean score by kind; the mark is the baseline", _score_bars(found)))
        latencies = _latencies(found)
        if latencies:
            title = "Virtual time of a case; the marks are half and 95 of 100"
            plots.append(strips(title, latencies, "ms"))
    if found.history:
        names = [entry.date for entry in found.history[-HISTORY_MAX:]]
        plots.append(lines("Mean score by kind, at every blessing and now", *_history(found, names)))
    return plots


def _score_bars(found: Reported) -> list[Bar]:
    scores = mean_by_kind(found.results, "score")
    passed: defaultdict[str, list[bool]] = defaultdict(list)
    for result in found.results:
        passed[result.kind].append(result.passed)
    return [
        Bar(kind, scores[kind], found.blessed_scores.get(kind), f"{sum(passed[kind])}/{len(passed[kind])} pass")
        for kind in KINDS
        if kind in scores
    ]


def _latencies(found: Reported) -> dict[str, list[float]]:
    values: dict[str, list[float]] = {}
    for kind in KINDS:
        known = [one.measures.get("latency_ms") for one in found.results if one.kind == kind]
        row = [value for value in known if value is not None]
        if any(row):
            values[kind] = row
    return values


def _history(found: Reported, names: list[str]) -> tuple[list[str], Mapping[str, list[float | None]]]:
    entries = found.history[-HISTORY_MAX:]
    now = mean_by_kind(found.results, "score")
    series: dict[str, list[float | None]] = {
        kind: [entry.scores.get(kind) for entry in entries] + ([now.get(kind)] if now else [])
        for kind in KINDS
        if kind in now or any(kind in entry.scores for entry in entries)
    }
    return [*names, *(["now"] if now else [])], series
