"""What `connect`, `check` and the benchmark share: sources as their connectors parse them, Kafka's settings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import ConfigError

if TYPE_CHECKING:
    from connectors.publisher import KafkaSettings
    from connectors.registry import Configured
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


def configured_sources(config: Config, names: Iterable[str]) -> list[Configured]:
    """The sections of these sources, parsed; raises ConfigError with all mistakes of all of them."""
    from connectors.registry import configure

    return configure({name: source_section(config, name) for name in names})


def kafka_settings(config: Config) -> KafkaSettings:
    from connectors.publisher import KafkaSettings

    kafka = config.kafka
    return KafkaSettings(
        bootstrap_servers=kafka.bootstrap_servers,
        partitions=kafka.partitions,
        replication_factor=kafka.replication_factor,
        security=kafka.security,
        java=kafka.java,
    )
