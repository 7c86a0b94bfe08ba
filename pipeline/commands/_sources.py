"""What `connect`, `check` and the benchmark share: a source's configuration, Kafka's settings."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import ConfigError

if TYPE_CHECKING:
    from connectors.postgres.config import PostgresConfig
    from connectors.publisher import KafkaSettings
    from pipeline.core.config import Config


def source_section(config: Config, name: str) -> Mapping[str, Any]:
    """Raises ConfigError with the nearest name."""
    if name in config.sources:
        section: Mapping[str, Any] = config.sources[name]
        return section
    near = get_close_matches(name, config.sources, 1)
    hint = (
        f"did you mean {near[0]}?" if near else f"the configuration has {', '.join(sorted(config.sources)) or 'none'}"
    )
    raise ConfigError([f"no source {name!r}; {hint}"])


def postgres_config(config: Config, name: str) -> PostgresConfig:
    """The section of a Postgres source, parsed; raises ConfigError for any other connector."""
    from connectors.postgres.config import parse_config

    section = dict(source_section(config, name))
    if section.get("connector") != "postgres":
        known = "ctxpipe has the connectors: postgres"
        raise ConfigError([f"sources.{name}.connector: {section.get('connector')!r} is unknown. {known}"])
    return parse_config(name, section)


def kafka_settings(config: Config) -> KafkaSettings:
    from connectors.publisher import KafkaSettings

    kafka = config.kafka
    return KafkaSettings(
        bootstrap_servers=kafka.bootstrap_servers,
        partitions=kafka.partitions,
        replication_factor=kafka.replication_factor,
    )
