"""The one table of Postgres' errors: what a loop does with each, in words a person can act on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import asyncpg
import psycopg

from pipeline.core.errors import CtxpipeError, EnvironmentProblem, Fatal, PositionLost, Retryable


class SlotInUse(Retryable):
    """Another process reads from the slot."""


class Undefined(Fatal):
    """A table or a column that is not there, or no longer."""


_LOST = (
    "can no longer get changes from replication slot",
    "has already been removed",
    "was invalidated",
    "cannot copy invalidated",
)


def mapped(error: Exception, where: str) -> CtxpipeError:
    """`where` names server and database, without the password."""
    state = getattr(error, "sqlstate", None) or ""
    reason = (" ".join(str(error).split()) or type(error).__name__).rstrip(".")
    if any(phrase in reason for phrase in _LOST):
        return PositionLost(
            f"{where}: {reason}. The log that comes after our position is gone, changes in between can't be read any "
            "more. Start over with: ctxpipe connect SOURCE --reset (new slot, rows are read again, deleted rows vanish)"
        )
    if state in ("28P01", "28000") or "password authentication failed" in reason or "no password supplied" in reason:
        return EnvironmentProblem(f"{where} refuses the login: {reason}. Check user and password in the source's dsn.")
    if state == "3D000" or ("database" in reason and "does not exist" in reason):
        return EnvironmentProblem(f"{where}: {reason}. Create the database or mend the source's dsn.")
    if state == "55006" and "slot" in reason:
        return SlotInUse(f"{where}: {reason}")
    if state == "42704" and "replication slot" in reason:
        return PositionLost(f"{where}: {reason}. It was dropped; start over with: ctxpipe connect SOURCE --reset")
    if state == "42704" and "publication" in reason:
        return PositionLost(
            f"{where}: {reason}. It was dropped, or made anew after our position: the log of the time "
            "without it can't be read. Start over with: ctxpipe connect SOURCE --reset"
        )
    if state == "42P10" and "publication" in reason:
        return EnvironmentProblem(
            f"{where}: {reason}. Published with this row filter, the table would refuse UPDATE and DELETE. Filter by "
            "columns of its key only, or first: ALTER TABLE ... REPLICA IDENTITY FULL;"
        )
    if state in ("42703", "42P01"):
        return Undefined(f"{where}: {reason} (SQLSTATE {state})")
    if state == "42501":
        return EnvironmentProblem(f"{where}: {reason}. `ctxpipe check` shows the grants that are missing.")
    if state == "53400" and "replication slots" in reason:
        return EnvironmentProblem(f"{where}: {reason}. Raise max_replication_slots or drop unused slots.")
    if state[:2] in ("08", "53", "57", "40") or not state or isinstance(error, OSError):
        return Retryable(f"{where} can't be reached: {reason}")
    return Fatal(f"{where}: {reason} (SQLSTATE {state})")


@contextmanager
def mapped_errors(where: str) -> Iterator[None]:
    """Around every use of a driver."""
    try:
        yield
    except (psycopg.Error, asyncpg.PostgresError, asyncpg.InterfaceError, OSError, EOFError) as error:
        raise mapped(error, where) from error
