"""Which reader tells a source's tables as they are now, for `ctxpipe verify`: chosen by the source's connector.

A source whose topics others fill says in a section `verify` which database stands behind it:

    verify: {connector: postgres, dsn: "postgresql://…"}
    verify: {connector: cassandra, hosts: [10.0.0.1], user: …, password: …}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, SecretStr

from connectors.cql.reader import CqlReader
from connectors.cql.session import CqlServer
from connectors.postgres.reader import PostgresReader
from connectors.registry import Configured, Plugin, configure_one
from pipeline.core.errors import ConfigError

Progress = Callable[[str, int], None]

EXPIRY_S = 5.0
"""Within that time of each other, values whose time to live is over leave the database and the bundles, each by a clock
of its own, and writes are there whose writer's clock is ahead."""


class Reading(NamedTuple):
    """How a source is verified. `reader` is a pipeline.ops.reader.TableReader, to be closed afterwards.

    `heartbeats`: its topics say up to when every change has been published, `lone_only` in a cluster of one node.
    `settle_s` is how long bundles may differ from the database after everything that was written before has been
    applied.
    """

    reader: Any
    heartbeats: bool
    settle_s: float
    lone_only: bool = False

    async def has_heartbeats(self) -> bool:
        """Raises what the reader raises when it must ask and the database is away."""
        if self.heartbeats and self.lone_only:
            return not await self.reader.other_nodes()
        return self.heartbeats


class PostgresConnection(BaseModel):
    """A section `verify` for Postgres."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    connector: Literal["postgres"]
    name: str
    dsn: SecretStr


class CqlConnection(CqlServer):
    """A section `verify` for Cassandra or Scylla."""

    connector: Literal["cassandra", "scylla"]
    name: str


_CONNECTIONS: Mapping[str, type[BaseModel]] = MappingProxyType(
    {"postgres": PostgresConnection, "cassandra": CqlConnection, "scylla": CqlConnection}
)


def reading_of(source: Configured, progress: Progress = lambda what, count: None) -> Reading:
    """Nothing is connected yet. Raises ConfigError for a source that can't be verified."""
    config, connector = source.config, source.plugin.name
    if connector == "postgres":
        return Reading(PostgresReader(config.dsn.get_secret_value(), source.name, config.row_filters), True, 0.0)
    if connector == "cassandra":
        return Reading(CqlReader(config, source.name, progress), bool(config.heartbeat_table), EXPIRY_S, lone_only=True)
    if connector == "scylla":
        return Reading(CqlReader(config, source.name, progress), True, EXPIRY_S)
    section = getattr(config, "verify", None)
    if section is None and getattr(config, "dsn", None) is not None:
        section = {"connector": "postgres", "dsn": config.dsn.get_secret_value()}
    if not section:
        raise ConfigError(
            [
                f"source {source.name} can't be verified: its section does not say which database is behind it. Add "
                "verify: {connector: postgres, dsn: …} or verify: {connector: cassandra, hosts: […]}"
            ]
        )
    return _of_section(source.name, section, progress)


def _of_section(name: str, section: Mapping[str, Any], progress: Progress) -> Reading:
    connector = str(section.get("connector"))
    model = _CONNECTIONS.get(connector)
    if model is None:
        raise ConfigError([f"sources.{name}.verify.connector: {connector!r} is none of postgres, cassandra and scylla"])
    parsed = configure_one(Plugin(connector, "", model, None), f"{name}.verify", section).config
    if isinstance(parsed, PostgresConnection):
        return Reading(PostgresReader(parsed.dsn.get_secret_value(), name), False, 0.0)
    return Reading(CqlReader(parsed, name, progress), False, EXPIRY_S)
