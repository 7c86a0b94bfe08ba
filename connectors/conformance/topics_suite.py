"""All tests of the topics kind as one class, to be subclassed by the test file of a connector like that.

class TestAcme(TopicsSuite):
    harness_type = AcmeTopics            # connectors/conformance/topics_harness.py

    @pytest.fixture
    async def harness(self, deployment):
        async with AcmeTopics(deployment) as harness:
            yield harness
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from connectors.conformance.configuration import SectionTests
from connectors.conformance.deployed import Deployed
from connectors.conformance.harness import needs
from connectors.conformance.topics_harness import NEVER_ASKED, ROW_BYTES, Examined, TopicsHarness, undeclared
from connectors.conformance.topics_operations import TopicOperationTests
from connectors.conformance.topics_records import TopicRecordTests


class ExaminationTests:
    """What `ctxpipe check` says of it."""

    @needs(Examined)
    async def test_check_finds_a_fit_deployment_fit(self, deployed: Deployed, harness: Any) -> None:
        await deployed.started()
        found = await harness.check(harness.section())
        assert found, "it says at least that all is well"
        assert {finding.severity for finding in found} <= {"ok", "note", "warning"}

    @needs(Examined)
    async def test_check_finds_what_is_wrong(self, deployed: Deployed, harness: Any) -> None:
        await deployed.started()
        for what, section in (await harness.bad_sections()).items():
            told = [finding for finding in await harness.check(section) if finding.severity == "unfit"]
            assert told and all(finding.message for finding in told), f"{what}: found fit"
            assert any(finding.mend for finding in told), f"{what}: does not say how to mend it"


class TopicsSuite(TopicOperationTests, TopicRecordTests, ExaminationTests, SectionTests):
    """Give the subclass `harness_type` and a fixture `harness` that yields one of it. It needs a Kafka: the fixture
    `conformance_kafka` (--conformance-kafka, or one of the kit's own) is the one whose topics are read."""

    harness_type: type[Any]
    only: tuple[str, ...] = ()
    """Names of the tests to run; (): all. For a second harness that differs in one thing."""

    @classmethod
    def tells(cls) -> list[str]:
        """What the end of the run says besides what was left out."""
        harness_type, reasons = cls.harness_type, cls.harness_type.not_applicable
        found = [f"not applicable to a deployment: {NEVER_ASKED}"]
        if harness_type.row_bytes_max < ROW_BYTES:
            found.append(f"rows up to {harness_type.row_bytes_max:,} bytes: {reasons['row_bytes_max']}")
        return found

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        harness_type = cls.__dict__.get("harness_type")
        if harness_type is not None and (wrong := undeclared(harness_type)):
            raise TypeError("; ".join(f"{harness_type.__name__} {one}" for one in wrong))

    @pytest.fixture
    async def deployed(self, harness: TopicsHarness, conformance_kafka: str) -> AsyncIterator[Deployed]:
        found = Deployed(harness, conformance_kafka)
        yield found
        await found.close()
