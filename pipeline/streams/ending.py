"""The end of a worker process that must not go on: no commit, no orderly stop, only the reason and an exit code."""

from __future__ import annotations

import logging
import os
import sys
import threading
from typing import NoReturn

from pipeline.core.errors import CtxpipeError, Fatal

EXIT_RESTART = 70
"""Not understood, or stuck: the supervisor starts the worker again. Everything else it passes on (see core.errors)."""


class Restart(Fatal):
    """Nothing that a person has to mend: the supervisor starts the worker again."""

    exit_code = EXIT_RESTART


logger = logging.getLogger(__name__)


def end_process(error: Exception) -> NoReturn:
    """Logs why and ends at once. Stopping in order would still commit; nothing may be committed after the unknown."""
    if isinstance(error, CtxpipeError):
        logger.critical("%s", error)
        code = error.exit_code
    else:
        logger.critical("a batch failed in a way that nobody foresaw; ending this worker", exc_info=error)
        code = EXIT_RESTART
    _exit(code)


def end_stuck(reason: str) -> NoReturn:
    """The watchdog's way out."""
    logger.critical("this worker is stuck: %s; ending it", reason)
    _exit(EXIT_RESTART)


def end_late(limit_s: float) -> threading.Timer:
    """Ends the process, in any case, after the time that its orderly end may take: an orchestrator would kill it, which
    says nothing. Cancel it only where there is something else to do."""

    def end() -> None:
        logger.error("not everything stopped within %.0f s; ending anyway, which loses nothing", limit_s)
        _exit(0)

    timer = threading.Timer(limit_s, end)
    timer.daemon = True
    timer.start()
    return timer


def _exit(code: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)
