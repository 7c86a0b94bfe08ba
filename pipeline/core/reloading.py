"""Reading the configuration again while a role runs (SIGHUP): what is safe to change is changed, the rest is said."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pipeline.core.config import Config, load
from pipeline.core.errors import ConfigError
from pipeline.core.logging import set_level

Apply = Callable[[Config], None]
NOTHING: Mapping[str, Apply] = {}

_LOG = logging.getLogger("ctxpipe.reload")


class Reloading:
    """Call it to read the file again. `safe`: path of a section or key → what takes it over. Nothing else is touched:
    the process goes on as it began, and the log says what needs a restart. A file with mistakes changes nothing."""

    def __init__(self, config: Config, safe: Mapping[str, Apply] = NOTHING) -> None:
        self._began = self._last = config
        self._safe = {"running.log_level": lambda new: set_level(new.running.level), **safe}
        self._running: asyncio.Task[None] | None = None

    def __call__(self) -> None:
        """Blocks for as long as reading takes."""
        new = self._read()
        if new is not None:
            self._take(new)

    def begin(self) -> None:
        """The same from an event loop, which is not held up by the reading."""
        if self._running is None or self._running.done():
            self._running = asyncio.get_running_loop().create_task(self._in_loop())

    async def _in_loop(self) -> None:
        new = await asyncio.to_thread(self._read)
        if new is not None:
            self._take(new)

    def _read(self) -> Config | None:
        try:
            return load(self._began.path)
        except ConfigError as error:
            _LOG.error("the configuration stays as it was, its file has mistakes: %s", "; ".join(error.mistakes))
            return None

    def _take(self, new: Config) -> None:
        taken = [path for path in changes(self._last, new) if self._apply_of(path) is not None]
        for apply in {id(found): found for path in taken if (found := self._apply_of(path))}.values():
            apply(new)
        refused = [path for path in changes(self._began, new) if self._apply_of(path) is None]
        self._last = new
        if refused:
            _LOG.warning("%s: changes that need a restart: %s", new.path, ", ".join(refused))
        _LOG.info("%s was read again; taken over: %s", new.path, ", ".join(taken) or "nothing")

    def _apply_of(self, path: str) -> Apply | None:
        for safe, apply in self._safe.items():
            if path == safe or path.startswith(f"{safe}."):
                return apply
        return None


def changes(old: Config, new: Config) -> list[str]:
    """Paths of keys whose values differ, sorted; names only, because values may be secrets."""
    return sorted(_differences(old.model_dump(), new.model_dump(), ""))


def _differences(old: Any, new: Any, at: str) -> Iterator[str]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in {**old, **new}:
            yield from _differences(old.get(name), new.get(name), f"{at}.{name}" if at else str(name))
    elif old != new:
        yield at


def hears_hangups() -> bool:
    """At a terminal, the signal says that it is gone, and ends us as ever."""
    return not sys.stderr.isatty()


@contextmanager
def on_hangup(reload: Reloading) -> Iterator[None]:
    """SIGHUP reads again, inside the block; for whoever runs in an event loop."""
    if not hears_hangups():
        yield
        return
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, reload.begin)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)
