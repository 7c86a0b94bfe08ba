"""Whether a worker process lives, has recovered and gets on: checks (pipeline.core.health) over its application."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from pipeline.core.health import Health


def watch_worker(app: Any, health: Health, now_s: Callable[[], float] = time.monotonic) -> None:
    """Startup: stores and topics are there, and the partitions that it was given begin at their marks. Alive: the loop
    turns, and what waits is worked on, unless an outage or a rebalance holds it up."""
    placed = False

    def connected() -> str:
        if placed or (app.opened is not None and not app.waits_for):
            return ""
        return app.waits_for or "stores and topics are being opened"

    def partitions() -> str:
        nonlocal placed
        # Not app.consumer, which makes one.
        placed = placed or (app._consumer is not None and app._consumer.placed)
        return "" if placed else "no partitions yet: the group shares them out, or their marks are being read"

    def stores() -> str:
        waits = app._consumer is not None and app._consumer.waits_for_stores
        away = app.held_up_by or ("an outage" if waits else "")
        return f"{away}; what waits is kept" if away else ""

    health.check("connected", connected, "startup")
    health.check("partitions", partitions, "startup")
    health.check("progress", lambda: app.watchdog.problem(now_s()), "live")
    health.check("servers", stores, "note")
    health.check("group", lambda: "its partitions are being shared out" if app.rebalancing else "", "note")
