"""The engine of a space's workers: opened beside the agents, again and again until it works, and when it fails."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from mode import get_logger

from pipeline.core.clock import Clock
from pipeline.core.errors import CtxpipeError, Retryable
from pipeline.embedding.batching import BatchLimits, EmbeddingPool
from pipeline.embedding.engine import Engine
from pipeline.streams.backoff import Backoff

logger = get_logger(__name__)

LONGEST_WAIT_S = 60.0


class EngineHolder:
    """`open_engine` blocks, and raises CtxpipeError where the engine is missing, is away, or is another one than the
    space was made with; so does `check` for one that is open. Texts go on without it, so that words still find what
    vectors cannot.

    Made in the event loop that uses it.
    """

    def __init__(
        self, open_engine: Callable[[], Engine], check: Callable[[Engine], object], limits: BatchLimits, clock: Clock
    ) -> None:
        self._open, self._check, self._limits, self._clock = open_engine, check, limits, clock
        self._found: tuple[Engine, EmbeddingPool] | None = None
        self._problem = ""
        self._tried = asyncio.Event()
        self._opening = asyncio.ensure_future(self._open_it())

    async def get(self) -> tuple[Engine, EmbeddingPool]:
        """Raises Retryable with the reason why it can't be used now."""
        await self._tried.wait()
        if self._found is not None:
            return self._found
        if self._opening.done():
            self._opening.result()  # what nobody here understands
        raise Retryable(self._problem)

    async def prove(self) -> None:
        """Something that it answered can't be: returns where it is the engine of the space all the same. Raises
        Retryable where it is not; it is closed then, and opened anew."""
        engine, pool = await self.get()
        try:
            await asyncio.to_thread(self._check, engine)
        except Retryable:
            raise
        except CtxpipeError as error:
            if self._found is not None and self._found[0] is engine:
                self._found, self._problem = None, str(error)
                logger.critical("nothing is embedded: %s", error)
                try:
                    await _close(engine, pool)
                finally:
                    self._opening = asyncio.ensure_future(self._open_it())
            raise Retryable(str(error)) from error

    async def close(self) -> None:
        self._opening.cancel()
        await asyncio.gather(self._opening, return_exceptions=True)
        if self._found is not None:
            await _close(*self._found)

    async def _open_it(self) -> None:
        try:
            await self._until_open()
        finally:
            self._tried.set()

    async def _until_open(self) -> None:
        backoff = Backoff(first_s=1.0, longest_s=LONGEST_WAIT_S)
        while self._found is None:
            try:
                engine = await asyncio.to_thread(self._open)
            except CtxpipeError as error:
                if str(error) != self._problem:
                    logger.critical("nothing is embedded: %s", error)
                self._problem = str(error)
                self._tried.set()
                await self._clock.sleep(max(backoff.next_s(), getattr(error, "retry_after_s", 0.0)))
            else:
                self._found = engine, EmbeddingPool(engine, self._limits)
        if self._problem:
            logger.info("the embedding engine works now")
            self._problem = ""


async def _close(engine: Engine, pool: EmbeddingPool) -> None:
    await pool.close()
    await asyncio.to_thread(engine.close)
