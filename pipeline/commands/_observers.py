"""What `connect` tells of batches on their way: which contexts each topic's rows are in, and who wants traces."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.core.errors import ConfigError

if TYPE_CHECKING:
    from connectors.observing import Observer
    from pipeline.core.config import Config
    from pipeline.core.freshness import Freshness
    from pipeline.core.telemetry import Traces

log = logging.getLogger(__name__)


def observers(config: Config, sources: Sequence[str], traces: Traces | None) -> dict[str, Observer]:
    """One per source. Where the files of contexts are not at hand, nothing is told by context, and the rest works."""
    from connectors.observing import Observer
    from pipeline.core.clock import SystemClock
    from pipeline.core.config import load_contexts
    from pipeline.core.freshness import Freshness

    try:
        specs = load_contexts(config)
    except ConfigError as error:
        log.warning("no freshness of captured and in_kafka: the contexts can't be read here: %s", error)
        specs = {}
    topics: dict[str, list[Freshness]] = {}
    for spec in specs.values():
        entities = [entity for entity in spec.entities.values() if entity.source in sources]
        if entities:
            freshness = Freshness(spec.context, spec.serving, ("captured", "in_kafka"))
            for topic in {config.topic(entity.source, entity.table) for entity in entities}:
                topics.setdefault(topic, []).append(freshness)
    one_in = config.telemetry.trace_one_batch_in
    return {name: Observer(name, SystemClock(), topics, traces, one_in) for name in sources}
