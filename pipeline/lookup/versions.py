"""Keeps lookups on the version of each context that serves: a rebuilt one takes over between two queries."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

from pipeline.core.errors import CtxpipeError
from pipeline.lookup.served import ServedContext
from pipeline.lookup.service import LookupService

LOOK_EVERY_S = 0.5

_LOG = logging.getLogger("ctxpipe.lookup")


class OpenVersion(Protocol):
    """One version of a context, connected."""

    @property
    def served(self) -> ServedContext: ...

    async def serving(self) -> int | None:
        """Which version of this context serves now; None when none does. Raises Retryable when the store is away."""

    async def close(self) -> None: ...


OpenByNumber = Callable[[str, int], Awaitable[OpenVersion]]
"""(context, version) → that version. Raises a CtxpipeError when it cannot be opened."""


class VersionKeeper:
    """`run` looks for promotions until it is cancelled; call `close` afterwards, which closes all versions.

    A query keeps the version that it began with; an old version closes when its last query has ended.
    """

    def __init__(self, service: LookupService, opened: Mapping[str, OpenVersion], open_version: OpenByNumber) -> None:
        self._service, self._opened, self._open = service, dict(opened), open_version
        self._retired: list[OpenVersion] = []
        self._told: set[str] = set()

    async def run(self) -> None:
        while True:
            await self.look()
            await asyncio.sleep(LOOK_EVERY_S)

    async def look(self) -> None:
        """Changes over what has a new version. A store that is away, or a version that cannot be opened, changes
        nothing: lookups go on with the version at hand."""
        for context in list(self._opened):
            try:
                await self._look_at(context)
            except CtxpipeError as error:
                self._tell_once(f"{context}: lookups stay with the version at hand: {error}")
        for version in [retired for retired in self._retired if not retired.served.queries]:
            self._retired.remove(version)
            await version.close()

    async def close(self) -> None:
        for version in (*self._opened.values(), *self._retired):
            await version.close()

    async def _look_at(self, context: str) -> None:
        old = self._opened[context]
        number = await old.serving()
        if number is None or number == old.served.spec.version:
            return
        new = await self._open(context, number)
        try:
            # Connected, and with ages at hand, before the first query comes.
            await self._service.warm(new.served)
        except BaseException:
            await new.close()
            raise
        self._service.use(context, new.served)
        self._opened[context] = new
        self._retired.append(old)
        _LOG.info("%s: version %d serves, after version %d", context, number, old.served.spec.version)

    def _tell_once(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            _LOG.warning("%s", text)
