"""How long to wait before asking again: exponential with jitter, so that workers do not come back all at once."""

from __future__ import annotations

import random


class Backoff:
    """Waits of `first_s`, doubling up to `longest_s`, each multiplied by a random 0.5 to 1."""

    def __init__(self, first_s: float = 0.1, longest_s: float = 5.0, randomness: random.Random | None = None) -> None:
        self.first_s, self.longest_s = first_s, longest_s
        self._random = randomness or random.Random()
        self._step_s = first_s

    def next_s(self) -> float:
        """The next wait in seconds."""
        wait_s = self._step_s * self._random.uniform(0.5, 1.0)
        self._step_s = min(self._step_s * 2, self.longest_s)
        return wait_s

    def reset(self) -> None:
        """It worked: the next failure starts small again."""
        self._step_s = self.first_s
