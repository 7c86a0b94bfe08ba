"""Kafka headers that ctxpipe reads and writes: when a change was committed, and whose trace it belongs to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Headers = Sequence[tuple[str, bytes]]

COMMIT_TIME = "ctxpipe-commit-us"
"""On requests, chunks, texts and vectors: when the oldest live change that led to the record was committed at its
source, microseconds since 1970 UTC in decimal. Source topics say it in their envelopes; nobody's backfill has it."""
TRACEPARENT = "traceparent"
TRACESTATE = "tracestate"
"""W3C Trace Context, whoever began the trace."""

_TRACE = frozenset({TRACEPARENT, TRACESTATE})
_DIGITS_MAX = 18


def commit_time_header(time_us: int) -> tuple[str, bytes]:
    return (COMMIT_TIME, b"%d" % time_us)


def commit_time_of(headers: Iterable[tuple[str, bytes]]) -> int:
    """0 where there is none, or none that can be read."""
    for name, value in headers:
        if name == COMMIT_TIME and value and value.isdigit() and len(value) <= _DIGITS_MAX:
            return int(value)
    return 0


def trace_of(headers: Iterable[tuple[str, bytes]]) -> tuple[tuple[str, bytes], ...]:
    """Only those of the trace; empty without a traceparent."""
    found = tuple((name, value) for name, value in headers if name in _TRACE and value)
    return found if any(name == TRACEPARENT for name, _ in found) else ()
