"""Words of `ctxpipe eval compare`'s command line → what they mean, or one sentence on how to write them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from pipeline.evaluation.statistics.limits import AskedLimit
    from pipeline.evaluation.statistics.planning import Assumed

PLAN_KEYS = ("effect", "discordant", "sd", "group_size", "icc", "power")


def claim_of(text: str) -> float:
    """In points; 0 for "better"."""
    if text == "better":
        return 0.0
    word, _, number = text.partition(":")
    points = _number(number) if word == "points" else None
    if points is None or not 0 < points < 99:
        raise click.UsageError(f'--claim {text}: write better, or points:4 for "better by at least 4 points of 100"')
    return points


def limits_of(texts: tuple[str, ...]) -> list[AskedLimit]:
    """MEASURE:+NUMBER, or MEASURE:+NUMBER%."""
    from pipeline.evaluation.statistics.limits import AskedLimit

    found, wrong = [], []
    for text in texts:
        measure, _, rest = text.partition(":")
        relative = rest.endswith("%")
        number = _number(rest.removesuffix("%"))
        if not measure or number is None or (relative and number <= -100):
            wrong.append(text)
            continue
        if measure in ("passed", "score") or measure.startswith("check:"):
            raise click.UsageError(f"--limit {text}: limits are for what should not rise; of {measure} more is better")
        found.append(AskedLimit(measure=measure, limit=number / 100 if relative else number, relative=relative))
    if wrong:
        raise click.UsageError(
            f"--limit {', '.join(wrong)}: write MEASURE:+NUMBER or MEASURE:+NUMBER%, such as latency_ms:+50, "
            "cost:+10%, malformed:+0.01"
        )
    twice = {one.measure for one in found if [other.measure for other in found].count(one.measure) > 1}
    if twice:
        raise click.UsageError(f"--limit: {', '.join(sorted(twice))} has two limits; keep one")
    return found


def models_of(texts: tuple[str, ...]) -> dict[str, str]:
    """A=ENDPOINT and B=ENDPOINT."""
    found: dict[str, str] = {}
    for text in texts:
        side, _, endpoint = text.partition("=")
        if side not in ("A", "B") or not endpoint or side in found:
            raise click.UsageError(f"--model {text}: write A=ENDPOINT or B=ENDPOINT, each at most once")
        found[side] = endpoint
    return found


def plan_of(text: str, claim_points: float) -> tuple[float, list[Assumed]]:
    """(the gain in points that is planned for, what is assumed): several where neither discordant nor sd is said."""
    from pipeline.evaluation.statistics.planning import Assumed

    values: dict[str, float] = {}
    for part in text.split(","):
        key, _, number = part.strip().partition("=")
        value = _number(number)
        if key not in PLAN_KEYS or value is None or key in values:
            raise click.UsageError(
                f"--plan {text}: {part.strip()!r} is not understood; write effect=4 (points), and one of "
                f"discordant=0.15 and sd=0.2; known are {', '.join(PLAN_KEYS)}"
            )
        values[key] = value
    if "effect" not in values:
        raise click.UsageError(f"--plan {text}: effect=POINTS is missing, the gain that has to be found")
    spreads: list[tuple[float | None, float | None]] = [(values.get("discordant"), values.get("sd"))]
    if "discordant" not in values and "sd" not in values:
        least = max(0.05, math.ceil(values["effect"] + 1) / 100)
        spreads = [(share, None) for share in sorted({least, 0.1, 0.15, 0.2, 0.3}) if share >= least]
    found = [
        Assumed(
            effect=values["effect"] / 100,
            claim=claim_points / 100,
            discordant=discordant,
            deviation=deviation,
            group_size=values.get("group_size", 1.0),
            likeness=values.get("icc", 0.0),
            power=values.get("power", 0.8),
        )
        for discordant, deviation in spreads
    ]
    mistakes = [mistake for assumed in found for mistake in assumed.mistakes()]
    if mistakes:
        raise click.UsageError(f"--plan {text}: {'; '.join(dict.fromkeys(mistakes))}")
    return values["effect"], found


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
