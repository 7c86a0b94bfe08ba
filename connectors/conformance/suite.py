"""All tests of the kit as one class, to be subclassed by a connector's test file."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from connectors.assembly import publisher_of
from connectors.conformance.configuration import ConfigurationTests
from connectors.conformance.harness import NAME, Harness
from connectors.conformance.kafka import KafkaTests
from connectors.conformance.operations import OperationTests
from connectors.conformance.positions import PositionTests
from connectors.conformance.records import RecordTests
from connectors.conformance.running import Beside, Subject
from connectors.conformance.snapshots import SnapshotTests
from connectors.registry import configure_one
from connectors.source import UsingKafka


class SourceSuite(KafkaTests, OperationTests, PositionTests, RecordTests, SnapshotTests, ConfigurationTests):
    """Give the subclass `harness_type`, by which tests are chosen, and a fixture `harness` that yields one of it.

    Every test fails for a source that breaks its promise. pytest runs those of the last base first.
    """

    harness_type: type[Any]
    only: tuple[str, ...] = ()
    """Names of the tests to run; (): all. For a second harness that differs in one thing."""

    @pytest.fixture
    async def subject(self, harness: Harness, request: pytest.FixtureRequest) -> AsyncIterator[Subject]:
        """A source beside which another program writes to Kafka gets one, and what lies there counts as read."""
        if not harness.plugin.can(UsingKafka):
            yield Subject(harness)
            return
        kafka = request.getfixturevalue("conformance_kafka")
        configured = configure_one(harness.plugin, NAME, harness.section())
        beside = Beside(kafka, configured.topics())
        publisher = publisher_of(NAME, configured.source(), beside.kafka)
        await publisher.start()  # makes the topics, as `ctxpipe connect` does
        await publisher.stop()
        yield Subject(harness, beside)
        await beside.close()
