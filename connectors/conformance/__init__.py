"""The conformance kit: what every source must pass, as a pytest plugin that is installed with ctxpipe.

A connector's own test file gives the suite a harness (connectors/conformance/harness.py) and gets all tests that fit:

    class TestAcme(SourceSuite):
        harness_type = AcmeHarness

        @pytest.fixture
        async def harness(self, tmp_path):
            async with AcmeHarness(tmp_path) as harness:
                yield harness

Tests of abilities that neither harness nor source has are not collected; the end of the run says which ones.

Where records don't pass through a source object (a process of its own beside the database, a deployment of others) take
TopicsSuite (topics_suite.py) and a harness of the topics kind (topics_harness.py).
"""
