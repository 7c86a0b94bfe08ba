"""How many partitions topics have, asked of Kafka: what has to be applied before a check may begin."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

REQUEST_TIMEOUT_MS = 5_000
NO_SECURITY: Mapping[str, Any] = {}

# A Kafka that is away is no trouble here, so its client need not print that.
logging.getLogger("aiokafka").addHandler(logging.NullHandler())


async def partition_counts(
    bootstrap_servers: str, topics: Sequence[str], security: Mapping[str, Any] = NO_SECURITY
) -> dict[str, int]:
    """Topic → number of partitions; 0 for topics that Kafka does not know and, for all, when it does not answer.
    `security` goes to the client as it is."""
    unknown = dict.fromkeys(topics, 0)
    if not topics:
        return unknown
    client = AIOKafkaAdminClient(bootstrap_servers=bootstrap_servers, request_timeout_ms=REQUEST_TIMEOUT_MS, **security)
    try:
        await client.start()
        described = await client.describe_topics(list(topics))
    except (KafkaError, OSError):
        return unknown
    finally:
        await client.close()
    return {**unknown, **{item["topic"]: len(item["partitions"]) for item in described}}
