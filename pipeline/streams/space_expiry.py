"""A task beside the agents: bundles that left Redis by their time to live leave no trace; somebody has to look."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from typing import TYPE_CHECKING, Any

from mode import get_logger

from schemas.bundle import ROOT_UNIT, UnitKey

if TYPE_CHECKING:
    from pipeline.stores.redis_store import Stores

logger = get_logger(__name__)

KEYS_AT_ONCE = 500
LOOKS_PER_LIFE = 10
EVERY_S_MIN, EVERY_S_MAX = 1.0, 3600.0


async def ask_for_expired(app: Any) -> None:
    """Ten times in a bundle's life every text is compared with its bundle; what is gone is looked at like a deletion.
    Every worker does so: a look more is harmless."""
    expired = None if app.opened is None else app.opened.expired
    if expired is None:
        return
    every_s = min(EVERY_S_MAX, max(EVERY_S_MIN, app.opened.time_to_live_s / LOOKS_PER_LIFE))
    while not app.should_stop:
        await app.sleep(every_s)
        if not app.should_stop:
            await app.until_it_works(partial(_ask, app, expired))


async def _ask(app: Any, expired: Any) -> None:
    asked = 0
    async for keys in expired():
        await app.publisher.request_texts(keys)
        asked += len(keys)
        if app.should_stop:
            break
    if asked:
        logger.info("space %s: %d bundles have lived their time", app.space_stream.space, asked)


async def expired_keys(stores: Stores, space: str) -> AsyncIterator[list[str]]:
    """Keys that have a text in this space, and no bundle any more."""
    chunk: list[str] = []
    async for key, state in stores.vector_states.scan_states(space):
        if state.text_hash:
            chunk.append(key)
        if len(chunk) == KEYS_AT_ONCE:
            yield await _gone(stores, chunk)
            chunk = []
    if chunk:
        yield await _gone(stores, chunk)


async def _gone(stores: Stores, keys: list[str]) -> list[str]:
    found = await stores.bundles.get([UnitKey(ROOT_UNIT, key) for key in keys])
    return [key for key, bundle in zip(keys, found, strict=True) if bundle is None]
