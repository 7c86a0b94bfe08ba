"""Beside the path: writes the rows of `ctxpipe canary` into a source, and makes the table for them; chosen by the
source's connector, as readers.py chooses who reads for `ctxpipe verify`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

import msgspec
from pydantic import BaseModel, ConfigDict, SecretStr

from connectors.cql.session import CqlServer
from connectors.partitioner import partition_of
from connectors.registry import Configured, Plugin, configure_one
from connectors.source import Finding
from pipeline.core.canary import KEY
from pipeline.core.errors import ConfigError

ROWS_MAX = 1_000
"""A lookup takes so many keys at once."""
TRIED_MAX = 100_000
MISSED_MAX = 0.01
"""Of keys whose partition is not known: how likely a partition may be without one."""


class CanaryRow(msgspec.Struct, frozen=True):
    """One row; see pipeline.core.canary for what its columns mean."""

    slot: int
    slots: str
    kafka_partition: int | None
    number: int
    written_us: int


class CanaryWriter(Protocol):
    """Connects with its first call, and again after an error. One call at a time; safe to cancel, which gives up the
    connection. Raises Retryable when the source is away, and other CtxpipeErrors for what a person has to mend."""

    async def write(self, rows: Sequence[CanaryRow]) -> None:
        """Puts all rows in place of those before; returns when the source has committed them."""

    async def prepare(self) -> list[Finding]:
        """Makes the table where it is not there and the login may. Says what is in the way, and what mends it."""

    async def close(self) -> None:
        """At once, whatever is on its way."""


class PostgresLogin(BaseModel):
    """Who writes into Postgres. `publication` "": another program captures the table."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    connector: str
    name: str
    dsn: SecretStr
    publication: str = ""


class CqlLogin(CqlServer):
    """Who writes into Cassandra or Scylla."""

    connector: str
    name: str


_LOGINS: Mapping[str, type[BaseModel]] = MappingProxyType(
    {"postgres": PostgresLogin, "cassandra": CqlLogin, "scylla": CqlLogin}
)


def writer_of(source: Configured, table: str, login: Mapping[str, Any]) -> CanaryWriter:
    """Nothing is connected yet. `login`: keys of the source's section that are others for who writes. Raises
    ConfigError for a source that nobody can write into."""
    section = _section(source, login)
    connector = str(section.get("connector"))
    model = _LOGINS.get(connector)
    if model is None:
        raise ConfigError(
            [
                f"canary.sources.{source.name}: no row can be written into a source of {connector}; "
                "postgres, cassandra and scylla can, and a Debezium source that says in `verify` which is behind it"
            ]
        )
    try:
        parsed = configure_one(Plugin(connector, "", model, None), source.name, section).config
    except ConfigError as error:
        ours = f"canary.sources.{source.name}.login."
        raise ConfigError([text.replace(f"sources.{source.name}.", ours, 1) for text in error.mistakes]) from None
    if isinstance(parsed, PostgresLogin):
        from connectors.postgres.canary import PostgresCanary

        return PostgresCanary(source.name, parsed.dsn.get_secret_value(), table, parsed.publication)
    from connectors.cql.canary import CqlCanary

    return CqlCanary(source.name, parsed, table, is_scylla=connector == "scylla")


def rows_of(partitions: int, ours: bool) -> dict[int, int | None]:
    """Row → the partition that the record of its key goes to, one row for each partition, the first of them 0.

    Only the keys of our own connectors (`ours`) are known. Of others, so many rows that hardly a partition is without.
    """
    if not ours:
        count = math.ceil(partitions * (math.log(partitions) - math.log(MISSED_MAX)))
        return dict.fromkeys(range(1 if partitions == 1 else min(count, ROWS_MAX)))
    found: dict[int, int | None] = {}
    taken: set[int] = set()
    for slot in range(TRIED_MAX):
        partition = partition_of(record_key(slot), partitions)
        if partition not in taken:
            taken.add(partition)
            found[slot] = partition
        if len(taken) >= min(partitions, ROWS_MAX):
            break
    return found


def record_key(slot: int) -> bytes:
    """As our connectors write it, and Debezium's for Cassandra as ours sets it up."""
    return b'{"%b":%d}' % (KEY.encode(), slot)


def _section(source: Configured, login: Mapping[str, Any]) -> dict[str, Any]:
    """What a login is parsed from."""
    config, connector = source.config, source.plugin.name
    if connector == "postgres":
        given: dict[str, Any] = {"dsn": config.dsn.get_secret_value(), "publication": config.publication}
    elif isinstance(config, CqlServer):
        given = {name: getattr(config, name) for name in CqlServer.model_fields}
    else:
        given = dict(getattr(config, "verify", None) or {})
        if not given and getattr(config, "dsn", None) is not None:
            given = {"connector": "postgres", "dsn": config.dsn.get_secret_value()}
    return {"connector": connector, **given, **login}
