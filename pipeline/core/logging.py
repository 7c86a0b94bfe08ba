"""Logging for every process: lines of JSON for machines, short coloured lines for a person at a terminal.

Log what happened and where (topic, partition, offset, key counts), never rows, bundles or secrets; passwords inside
addresses are masked here all the same, because drivers put addresses into their errors.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import IO, Literal

from pipeline.core.config import mask_addresses

Style = Literal["auto", "json", "console"]

MESSAGE_LENGTH_MAX = 4_000
"""Characters of one message or traceback; what a driver has to say beyond is cut."""

# Libraries that tell each heartbeat, rebalance or file that they load at INFO.
QUIET = ("kafka", "mode", "faust", "asyncio", "uvicorn.access", "httpx", "faiss.loader", "sentence_transformers")
# It logs what it raises as well: its errors are told once, by us.
SILENT = ("aiokafka",)

_FIELDS: ContextVar[Mapping[str, object]] = ContextVar("log_fields", default={})  # noqa: B039 - never changed

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_COLOURS = {"DEBUG": "2", "INFO": "36", "WARNING": "33", "ERROR": "31", "CRITICAL": "1;31"}


@contextmanager
def log_fields(**fields: object) -> Iterator[None]:
    """Stand in every JSON line that this task, and what it starts, writes inside: context, topic, partition, offset,
    trace_id, span_id. Inner ones come on top of outer ones."""
    token = _FIELDS.set({**_FIELDS.get(), **fields})
    try:
        yield
    finally:
        _FIELDS.reset(token)


def configure(
    level: int | str = logging.INFO, style: Style = "auto", stream: IO[str] | None = None, **fields: object
) -> None:
    """Sets up the root logger, once more if called again. `auto` is console where `stream` (stderr) is a terminal.
    `fields` stand in every JSON line of the process."""
    output = stream or sys.stderr
    console = style == "console" or (style == "auto" and output.isatty())
    handler = logging.StreamHandler(output)
    handler.setFormatter(ConsoleFormatter(colour=output.isatty()) if console else JsonFormatter(fields))
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    set_level(level)


def set_level(level: int | str) -> None:
    """From now on; libraries stay as quiet as they are."""
    root = logging.getLogger()
    root.setLevel(level)
    for name in QUIET:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    for name in SILENT:
        logging.getLogger(name).setLevel(logging.CRITICAL)


class JsonFormatter(logging.Formatter):
    """`{"time", "level", "logger", "message", "process", …}`; what was given as `extra` stands beside them, and so do
    `fields` and those of `log_fields`."""

    def __init__(self, fields: Mapping[str, object]) -> None:
        super().__init__()
        self._fields = dict(fields)

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, object] = {
            "time": _time(record).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _clean(record.getMessage()),
            "process": record.process,
        }
        more = {**self._fields, **_FIELDS.get(), **_extra(record)}
        entry.update({name: _plain(value) for name, value in more.items() if name not in entry})
        if record.exc_info:
            entry["traceback"] = _clean(self.formatException(record.exc_info))
        return json.dumps(entry, ensure_ascii=False)


class ConsoleFormatter(logging.Formatter):
    """`12:30:05.123 INFO  connectors.runtime: message  name=value`."""

    def __init__(self, colour: bool) -> None:
        super().__init__()
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        time = _time(record).astimezone().strftime("%H:%M:%S.%f")[:-3]
        level = f"{record.levelname:<7}"
        if self._colour:
            level = f"\x1b[{_COLOURS.get(record.levelname, '0')}m{level}\x1b[0m"
        extra = "".join(f"  {name}={_plain(value)}" for name, value in _extra(record).items())
        line = f"{time} {level} {record.name}: {_clean(record.getMessage())}{extra}"
        return f"{line}\n{_clean(self.formatException(record.exc_info))}" if record.exc_info else line


def _time(record: logging.LogRecord) -> datetime:
    return datetime.fromtimestamp(record.created, UTC)


def _extra(record: logging.LogRecord) -> dict[str, object]:
    return {name: value for name, value in vars(record).items() if name not in _STANDARD}


def _plain(value: object) -> object:
    return value if isinstance(value, (int, float, bool, type(None))) else _clean(str(value))


def _clean(text: str) -> str:
    # Most texts can hold none, and looking costs more than the rest of a line.
    masked = mask_addresses(text) if "://" in text or "=" in text else text
    return masked if len(masked) <= MESSAGE_LENGTH_MAX else f"{masked[:MESSAGE_LENGTH_MAX]}… (cut)"


class SparseLog:
    """What may happen thousands of times a second, told once a second at most, with how often it was not told."""

    def __init__(self, log: logging.Logger, every_s: float = 1.0) -> None:
        self._log, self._every_s = log, every_s
        self._told_at_s: float | None = None
        self._untold = 0

    def tell(self, message: str, *values: object) -> None:
        now_s = time.monotonic()
        if self._told_at_s is not None and now_s - self._told_at_s < self._every_s:
            self._untold += 1
            return
        more = f" ({self._untold:,} more like it since the last time)" if self._untold else ""
        self._told_at_s, self._untold = now_s, 0
        self._log.warning(message + more, *values)
