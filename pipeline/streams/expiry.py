"""A task beside the agents: values with a time to live leave their rows when it is over; no record says so."""

from __future__ import annotations

from typing import Any

LOOK_EVERY_S = 0.25
IDLE_EVERY_S = 2.0
"""Where nothing has ever lived for a time, looking costs more than it finds."""
ROWS_MAX = 2000


async def expire_values(app: Any) -> None:
    """Every worker looks; that two find the same row is harmless. After the first find it looks often."""
    while not app.should_stop and app.handler is None:
        await app.sleep(LOOK_EVERY_S)
    if app.opened is None or app.opened.expire is None:
        return
    pause_s = IDLE_EVERY_S
    while not app.should_stop:
        found = await app.handler.expire(app.opened.expire, ROWS_MAX)
        if found:
            pause_s = LOOK_EVERY_S
        if found < ROWS_MAX // 2:
            await app.sleep(pause_s)
