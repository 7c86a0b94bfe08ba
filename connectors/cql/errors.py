"""The one table of the driver's errors: what a loop does with each, in words a person can act on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cassandra import (
    AuthenticationFailed,
    DriverException,
    InvalidRequest,
    OperationTimedOut,
    RequestExecutionException,
    Unauthorized,
    UnresolvableContactPoints,
)
from cassandra.cluster import NoHostAvailable
from cassandra.connection import ConnectionException
from cassandra.protocol import ErrorMessage, SyntaxException

from pipeline.core.errors import CtxpipeError, EnvironmentProblem, Fatal, Retryable


class Undefined(Fatal):
    """A keyspace, a table or a column that is not there, or no longer."""


_UNDEFINED = (
    "unconfigured table",
    "unknown cf",
    "does not exist",
    "undefined column",
    "undefined name",
    "unknown identifier",
)


def mapped(error: Exception, where: str) -> CtxpipeError:
    """`where` names the servers, without the password."""
    if isinstance(error, NoHostAvailable):
        return _nobody(error, where)
    reason = reason_of(error)
    if isinstance(error, AuthenticationFailed) or "AuthenticationFailed" in reason:
        return EnvironmentProblem(f"{where} refuses the login: {reason}. Check user and password of the source.")
    if isinstance(error, Unauthorized):
        return EnvironmentProblem(
            f"{where}: no permission: {reason}. `ctxpipe check` shows the grants that are missing."
        )
    if isinstance(error, ErrorMessage | InvalidRequest) and _undefined(reason):
        return Undefined(f"{where}: {reason}")
    if isinstance(error, InvalidRequest | SyntaxException):
        return Fatal(f"{where}: {reason}")
    if isinstance(error, UnresolvableContactPoints):
        return Retryable(f"{where} can't be reached: no host name can be resolved. Check hosts of the source.")
    if isinstance(error, OperationTimedOut):
        return Retryable(f"{where} does not answer in time: {reason}")
    if isinstance(error, RequestExecutionException | ConnectionException | OSError):
        return Retryable(f"{where}: {reason}")
    if isinstance(error, ErrorMessage):
        return Retryable(f"{where}: {reason}")
    return Fatal(f"{where}: {reason}")


def reason_of(error: Exception) -> str:
    """Its own words, on one line; server messages come as tuples of code, kind and text."""
    text = str(getattr(error, "message", "") or error).strip() or type(error).__name__
    if "message=" in text:
        text = text.partition('message="')[2].rpartition('"')[0] or text
    return " ".join(text.split()).rstrip(".")


def _undefined(reason: str) -> bool:
    return any(phrase in reason.lower() for phrase in _UNDEFINED)


def _nobody(error: NoHostAvailable, where: str) -> CtxpipeError:
    """Says what the hosts said: a refused login is another problem than a closed port."""
    found: Any = error.errors
    causes = list(found.values()) if isinstance(found, dict) else []
    for cause in causes:
        if isinstance(cause, AuthenticationFailed | Unauthorized | InvalidRequest) or _undefined(reason_of(cause)):
            return mapped(cause, where)
    reason = "; ".join(dict.fromkeys(reason_of(cause) for cause in causes)) or reason_of(error)
    return Retryable(f"{where} can't be reached: {reason}")


@contextmanager
def mapped_errors(where: str) -> Iterator[None]:
    """Around every use of the driver."""
    try:
        yield
    except (DriverException, NoHostAvailable, ErrorMessage, ConnectionException, OSError) as error:
        raise mapped(error, where) from error
