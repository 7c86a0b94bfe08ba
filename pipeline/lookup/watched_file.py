"""A file whose content follows it: read anew when it changes, as credentials are while a server runs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from pipeline.core.errors import CtxpipeError

LOOK_EVERY_S = 1.0

_LOG = logging.getLogger("ctxpipe.access")
Content = TypeVar("Content")


class WatchedFile(Generic[Content]):
    """`content` looks at the file at most once in LOOK_EVERY_S. A file that is broken or gone changes nothing: what was
    read last counts on, and the log says so, because the other way an editor's slip would lock everybody out."""

    def __init__(self, path: Path, read: Callable[[Path], Content], monotonic_s: Callable[[], float]) -> None:
        """Reads it. Raises what `read` raises, which is a CtxpipeError."""
        self._path, self._read, self._monotonic_s = path, read, monotonic_s
        self._stamp = _stamp(path)
        self._content = read(path)
        self._looked_at_s = monotonic_s()

    def content(self) -> Content:
        now_s = self._monotonic_s()
        if now_s - self._looked_at_s >= LOOK_EVERY_S:
            self._looked_at_s = now_s
            stamp = _stamp(self._path)
            if stamp != self._stamp:
                self._stamp = stamp
                self._read_again()
        return self._content

    def _read_again(self) -> None:
        try:
            self._content = self._read(self._path)
        except CtxpipeError as error:
            _LOG.error("what was read before counts on: %s", error)
        else:
            _LOG.info("%s has changed and was read again", self._path)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """None while it can't be looked at."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
