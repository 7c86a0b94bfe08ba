"""How fast lag grows or shrinks, and when nothing waits any more: least squares over the last samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

SAMPLES_MAX, SAMPLES_MIN = 20, 3
SEGMENT_MIN = 4
"""So many samples after a turn, and the slope is taken from there: what was before the turn says nothing of now."""
PACE_CHANGED = 0.2
DEAD_BAND_PER_S, DEAD_BAND_SHARE = 1.0, 0.01
CATCH_UP_LAG_MIN = 100

GROWING, SHRINKING, STEADY = "growing", "shrinking", "steady"

Point = tuple[float, float]
"""(seconds, records)"""


@dataclass(frozen=True, slots=True)
class Trend:
    """`velocity` in records/s, above 0 where lag grows; None: too few samples. `catch_up_s` None unless it shrinks."""

    velocity: float | None = None
    name: str = ""
    catch_up_s: float | None = None


def trend(lags: Sequence[Point], produced_per_s: float) -> Trend:
    """Of (seconds, lag) in order; `produced_per_s` widens the dead band."""
    points = recent(lags)
    if len(points) < SAMPLES_MIN:
        return Trend()
    lag = points[-1][1]
    if lag <= 0:
        return Trend(0.0, STEADY, 0.0)
    band = max(DEAD_BAND_PER_S, DEAD_BAND_SHARE * produced_per_s)
    velocity = _velocity(points, band)
    if velocity > band:
        return Trend(velocity, GROWING)
    if velocity >= -band:
        return Trend(velocity, STEADY)
    return Trend(velocity, SHRINKING, lag / -velocity if lag >= CATCH_UP_LAG_MIN else None)


def recent(points: Sequence[Point]) -> Sequence[Point]:
    """The last samples, from the last turn on where enough came after it."""
    points = points[-SAMPLES_MAX:]
    if len(points) <= SEGMENT_MIN:
        return points
    values = [value for _, value in points]
    last = len(points) - 1
    # The latest of equal extremes: a plateau before the turn belongs to what was before.
    turns = sorted((last - values[::-1].index(extreme) for extreme in (max(values), min(values))), reverse=True)
    for turn in turns:
        if last - turn + 1 >= SEGMENT_MIN:
            return points[turn:]
    return points


def _velocity(points: Sequence[Point], band: float) -> float:
    """Of all of them, or of the later half where the pace has changed since the earlier."""
    whole = slope(points)
    half = points[len(points) // 2 :]
    if len(half) < SEGMENT_MIN:
        return whole
    later = slope(half)
    return later if abs(later - whole) > max(band, PACE_CHANGED * abs(whole)) else whole


def slope(points: Sequence[Point]) -> float:
    """Least squares, per second; 0 where no time passed."""
    count = len(points)
    mean_s = sum(at_s for at_s, _ in points) / count
    mean = sum(value for _, value in points) / count
    spread = sum((at_s - mean_s) ** 2 for at_s, _ in points)
    return sum((at_s - mean_s) * (value - mean) for at_s, value in points) / spread if spread > 0 else 0.0
