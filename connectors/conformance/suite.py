"""All tests of the kit as one class, to be subclassed by a connector's test file."""

from __future__ import annotations

from typing import Any

import pytest

from connectors.conformance.configuration import ConfigurationTests
from connectors.conformance.harness import Harness
from connectors.conformance.kafka import KafkaTests
from connectors.conformance.operations import OperationTests
from connectors.conformance.positions import PositionTests
from connectors.conformance.records import RecordTests
from connectors.conformance.running import Subject
from connectors.conformance.snapshots import SnapshotTests


class SourceSuite(KafkaTests, OperationTests, PositionTests, RecordTests, SnapshotTests, ConfigurationTests):
    """Give the subclass `harness_type`, by which tests are chosen, and a fixture `harness` that yields one of it.

    Every test fails for a source that breaks its promise. pytest runs those of the last base first.
    """

    harness_type: type[Any]
    only: tuple[str, ...] = ()
    """Names of the tests to run; (): all. For a second harness that differs in one thing."""

    @pytest.fixture
    def subject(self, harness: Harness) -> Subject:
        return Subject(harness)
