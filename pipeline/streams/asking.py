"""A task beside the agents: bundles that were written before anything was embedded are asked for, once per version."""

from __future__ import annotations

from functools import partial
from typing import Any

from mode import get_logger

logger = get_logger(__name__)

LOOK_EVERY_S = 0.25


async def ask_for_texts(app: Any) -> None:
    """Every worker looks; that two do the same is harmless. What is asked for twice is looked at twice, no more."""
    while not app.should_stop and app.publisher is None:
        await app.sleep(LOOK_EVERY_S)
    texts = None if app.opened is None else app.opened.texts
    if texts is None or app.should_stop or await app.until_it_works(texts.asked):
        return
    await app.until_it_works(partial(_ask, app, texts))


async def _ask(app: Any, texts: Any) -> None:
    asked = 0
    async for keys in texts.keys():
        await app.publisher.request_texts(keys)
        asked += len(keys)
        if app.should_stop:
            return
    await texts.remember()
    if asked:
        logger.info("asked for the texts of %d bundles that were there before", asked)
