"""Tells a person how far a space is, as long as there is much before it, and its stages whether it serves."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

from mode import get_logger

logger = get_logger(__name__)

TELL_EVERY_S = 10.0
WORTH_TELLING_RECORDS = 500
RATE_OVER = 6
"""So many tellings ago is where the rate counts from."""
SERVING_EVERY_S = 2.0


async def note_serving(app: Any) -> None:
    """A task beside the agents."""
    while not app.should_stop and app.opened is not None and app.opened.note_serving is not None:
        await app.until_it_works(app.opened.note_serving)
        await app.sleep(SERVING_EVERY_S)


async def tell_progress(app: Any) -> None:
    """A task beside the agents. What is before it is known from `watch_progress`."""
    seen: deque[tuple[float, int]] = deque([(time.monotonic(), 0)], maxlen=RATE_OVER)
    far = False
    while not app.should_stop:
        await app.sleep(TELL_EVERY_S)
        shown, now_s = app.shown, time.monotonic()
        begun_s, before = seen[0]
        seen.append((now_s, shown.vectors))
        if shown.behind_records < WORTH_TELLING_RECORDS:
            if far:
                logger.info(
                    "space %s has caught up; %d texts were embedded here", app.space_stream.space, shown.vectors
                )
            far = False
            continue
        far = True
        rate_per_s = (shown.vectors - before) / (now_s - begun_s)
        left = f"; about {shown.behind_records / rate_per_s / 60:.0f} minutes at this rate" if rate_per_s else ""
        logger.info(
            "space %s: %d records before it, %d texts embedded here, %.0f per second%s",
            app.space_stream.space,
            shown.behind_records,
            shown.vectors,
            rate_per_s,
            left,
        )
