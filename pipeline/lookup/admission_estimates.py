"""What admission goes by: how long a request takes at which load, and how much load leaves answers in their budgets."""

from __future__ import annotations

import math

LIMIT_FIRST = 40.0
LIMIT_MIN = 4.0
USED_AIM = 0.45
"""Of their budgets, answers use so much in the mean when the limit is reached; the rest is for those that are slow."""
USED_HIGH = 0.9
HIGH_SHARE_MAX = 0.005
WINDOW_ANSWERS = 50
WINDOW_S = 0.02
SMOOTHING = 0.3
GRADIENT_MIN = 0.5
STEP = 0.05
LATENCY_FIRST_S = 0.001


def size_of(keys: int) -> int:
    """Requests of similar size learn together: 1, 2 to 3, 4 to 7 keys and so on."""
    return keys.bit_length()


class Estimates:
    """Of a request's time: what it takes alone, by size, and what each request on its way adds. Both follow what is
    observed; the first mostly at low load, the second at high."""

    def __init__(self) -> None:
        self._alone_s: dict[int, float] = {}
        self._each_s = 0.0
        self.latency_s = LATENCY_FIRST_S
        """Recent mean."""

    def weight(self, size: int, keys: int) -> float:
        """How many requests for one key a request of this size is."""
        if size <= 1:
            return 1.0
        alone_s, single_s = self._alone_s.get(size), self._alone_s.get(1)
        if alone_s is None or not single_s:  # also one that a clock took for none at all
            return math.sqrt(keys)
        return min(max(alone_s / single_s, 1.0), float(keys))

    def expected_s(self, size: int, load: float) -> float:
        """In the mean; 0 while nothing is known."""
        alone_s = self._alone_s.get(size)
        return 0.0 if alone_s is None else alone_s + self._each_s * load

    def observe(self, size: int, load: float, took_s: float) -> None:
        """`load` is what was on its way when it came."""
        self.latency_s += STEP * (took_s - self.latency_s)
        alone_s = self._alone_s.get(size)
        if alone_s is None:
            self._alone_s[size] = took_s / (1 + load)
            return
        expected_s = alone_s + self._each_s * load
        error_s = min(took_s - expected_s, 2 * expected_s)
        self._alone_s[size] = max(alone_s + STEP * error_s / (1 + load / 4), 1e-6)
        self._each_s = max(self._each_s + STEP * error_s * load / (load * load + 16), 0.0)


class Limit:
    """The greatest load, as Netflix's gradient limiter finds it, with the callers' budgets in the place of the latency
    of an idle server: it falls in the proportion in which answers use more of their budgets than they should, and grows
    by the square root while they use less. Only answers that came near the limit say something of it."""

    def __init__(self, value_max: int) -> None:
        self._max = float(value_max)
        self.value = min(LIMIT_FIRST, self._max)
        self._answers = self._high = 0
        self._used = 0.0
        self._since_s: float | None = None

    def observe(self, load: float, used: float, now_s: float) -> None:
        """`used`: the share of its budget that an answer used, which came when there was this load, itself included."""
        if load < self.value / 2:
            return
        if self._since_s is None:
            self._since_s = now_s
        self._answers += 1
        self._used += min(used, 2.0)
        self._high += used > USED_HIGH
        if self._answers >= WINDOW_ANSWERS and now_s - self._since_s >= WINDOW_S:
            self._adapt()
            self._answers = self._high = 0
            self._used, self._since_s = 0.0, None

    def _adapt(self) -> None:
        gradient = min(USED_AIM / max(self._used / self._answers, 1e-3), 1.0)
        if self._high > 1 + HIGH_SHARE_MAX * self._answers:
            gradient = min(gradient, 0.9)
        wanted = self.value * max(gradient, GRADIENT_MIN) + (math.sqrt(self.value) if gradient == 1.0 else 0.0)
        self.value += SMOOTHING * (wanted - self.value)
        self.value = min(max(self.value, min(LIMIT_MIN, self._max)), self._max)
