"""What a person is told where reading can't go on: what happened, and what mends it."""

from __future__ import annotations

from connectors.scylla.config import LOG_SUFFIX, ScyllaConfig
from pipeline.core.errors import PositionLost


def no_log(config: ScyllaConfig, table: str) -> str:
    return (
        f"CDC is not enabled on {config.keyspace}.{table}: {table}{LOG_SUFFIX} is not there, or not to be seen. "
        f"ALTER TABLE {config.keyspace}.{table} WITH cdc = {{'enabled': true}};"
    )


def gone(config: ScyllaConfig, table: str) -> str:
    return (
        f"The table {config.keyspace}.{table} was dropped, or its CDC log was. Take it out of sources.{config.name}."
        f"tables, or make it anew with CDC enabled and start over with: ctxpipe connect {config.name} --reset"
    )


def lost(config: ScyllaConfig, table: str, found: str, late_s: int) -> PositionLost:
    """`found` is windows.verdict's."""
    name = f"{config.keyspace}.{table}"
    if found == "expired":
        reason = f"The log of {name} is kept for a time only, and where reading has to go on it ended {late_s} s ago."
        return PositionLost(reason + reset_hint(config))
    return PositionLost(f"The generation that {name} has been read in is not told any more.{reset_hint(config)}")


def reset_hint(config: ScyllaConfig) -> str:
    return (
        f" Changes in between can't be read any more. Start over with: ctxpipe connect {config.name} --reset (the "
        "log is read from its beginning; what it no longer holds, and deletes above all, is not told again)"
    )
