"""What orchestrators get of their requests: in time, late, shed or failed. The objectives of alerts are counted by it;
a caller's own mistake is none of these."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pipeline.core import metrics
from pipeline.lookup.admitting import Shed


class Outcomes:
    """Of one operation; each call is one request. `budget_ms` is what the answer could take."""

    def __init__(self, operation: str) -> None:
        in_time, late, shed, failed = (
            metrics.lookup_requests.labels(operation, outcome) for outcome in ("in_time", "late", "shed", "failed")
        )
        self._in_time, self._late = in_time.inc, late.inc
        self.shed, self.failed = shed.inc, failed.inc

    def answered(self, duration_s: float, budget_ms: float) -> None:
        if duration_s * 1000 <= budget_ms:
            self._in_time()
        else:
            self._late()

    @contextmanager
    def of(self, budget_ms: float, mistakes: tuple[type[Exception], ...]) -> Iterator[None]:
        """Around the answering of one request; `mistakes` are its caller's own."""
        began_s = time.perf_counter()
        count: Callable[[], None] | None = self.failed
        try:
            yield
            count = None
            self.answered(time.perf_counter() - began_s, budget_ms)
        except Shed:
            count = self.shed
            raise
        except mistakes:
            count = None
            raise
        except asyncio.CancelledError:  # a caller that went away has asked for nothing
            count = None
            raise
        finally:
            if count is not None:
                count()
