"""What an author of a connector gets: a package that runs and passes the kit, and a kit that finds what is broken."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.cli import ROOT, ctxpipe

pytest_plugins = ["pytester"]

BROKEN = """
import asyncio, logging
import pytest
from connectors.conformance.suite import SourceSuite
from connectors.registry import Plugin
from connectors.source import Batch
from ctxpipe_acme.config import AcmeConfig
from ctxpipe_acme.source import AcmeSource
from test_acme import AcmeHarness

class AcknowledgesEarly(AcmeSource):
    async def read(self):
        batch = await super().read()
        if batch.position:
            await self.acknowledge(batch.position)
        return batch

class LosesARowAtResume(AcmeSource):
    async def open(self, position):
        await super().open(position)
        if position:
            self._position = {**position, "seq": position["seq"] + 1}

class LeaksATask(AcmeSource):
    async def open(self, position):
        await super().open(position)
        asyncio.create_task(asyncio.sleep(3600), name="forgotten")

class LogsItsSecret(AcmeSource):
    async def open(self, position):
        logging.getLogger("acme").debug("login with %s", self._config.password.get_secret_value())
        await super().open(position)

class GoesBack(AcmeSource):
    async def read(self):
        batch = await super().read()
        return batch if batch.position else Batch(batch.records, self._position)

class TakesAnyPosition(AcmeSource):
    async def open(self, position):
        await super().open(None)
        if position:
            self._position, self._beginning = position, False

class ReadsOnBeforeItsBeginningIsStored(AcmeSource):
    async def read(self):
        batch = await super().read()
        self._stored.set()
        return batch

class NeverBeats(AcmeSource):
    async def read(self):
        while True:
            batch = await super().read()
            if batch.position:
                return batch

def without_nulls(row):
    return {column: value for column, value in row.items() if value is not None}

class LeavesNullsOut(AcmeSource):
    def __init__(self, config):
        super().__init__(config)
        written = self._records.written
        self._records.written = lambda key, row, *rest: written(key, without_nulls(row), *rest)

class MixesUpTheOrder(AcmeSource):
    async def read(self):
        batch = await super().read()
        return Batch(batch.records[::-1], batch.position, batch.bytes_total)

class ShowsItsSecret(AcmeConfig):
    password: str = ""

SOURCES, CONFIGS = AcmeSource.__subclasses__(), AcmeConfig.__subclasses__()
PLUGINS = [Plugin("acme", "", AcmeConfig, one) for one in SOURCES]
PLUGINS += [Plugin("acme", "", one, AcmeSource) for one in CONFIGS]

@pytest.fixture
async def harness(request, tmp_path):
    yield request.cls.harness_type(tmp_path)

for broken, plugin in zip([*SOURCES, *CONFIGS], PLUGINS):
    harness_type = type("Harness", (AcmeHarness,), {"plugin": plugin})
    globals()["Test" + broken.__name__] = type("Test" + broken.__name__, (SourceSuite,), {"harness_type": harness_type})
del broken, plugin, harness_type
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    done = ctxpipe("connector", "new", "acme", "--directory", "made", folder=tmp_path)
    assert done.code == 0, done.err
    return tmp_path / "made"


@pytest.mark.servers
def test_a_new_package_passes_its_own_tests(package: Path, kafka_bootstrap: str) -> None:
    options = ["-q", "-p", "no:cacheprovider", "--conformance-kafka", kafka_bootstrap, "--conformance-blocked-s", "0.2"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options],
        cwd=package,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert "skipped" not in done.stdout and "TestAcme: not asked for: Altering (1)" in done.stdout
    styled = [sys.executable, "-m", "ruff", "check", "--config", str(ROOT / "pyproject.toml"), "."]
    checked = subprocess.run(styled, cwd=package, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


EVERY_RESUME = {
    "killed_at_every_chunk_edge",
    "a_kill_before_the_first_position_is_stored",
    "a_crash_anywhere_loses_nothing",
    "a_failing_sink_loses_nothing",
    "kill_9_loses_nothing",
    "what_was_not_acknowledged_comes_again",
    "resumes_from_every_position",
}
AFTER_A_RESUME = {"null_absent_and_unavailable_are_three_things", "changes_of_a_key_keep_their_order"}
# Where it must fail, and where the same fault may show, too; everywhere else it must pass.
EXPECTED: dict[str, tuple[set[str], set[str]]] = {
    "AcknowledgesEarly": (
        {"the_server_is_told_only_after_kafka_has_it", "what_was_not_acknowledged_comes_again"},
        EVERY_RESUME,
    ),
    "LosesARowAtResume": ({"resumes_from_every_position"}, EVERY_RESUME | AFTER_A_RESUME),
    "LeaksATask": ({"cancelled_while_idle_it_leaves_nothing"}, set()),
    "LogsItsSecret": ({"no_secret_is_logged"}, set()),
    "GoesBack": ({"positions_are_json_and_increase"}, set()),
    "TakesAnyPosition": (
        {"a_foreign_position_is_refused", "a_lost_position_is_refused"},
        EVERY_RESUME | AFTER_A_RESUME,
    ),
    "ReadsOnBeforeItsBeginningIsStored": ({"a_kill_before_the_first_position_is_stored"}, set()),
    "NeverBeats": (
        {"an_idle_source_says_that_time_goes_by"},
        {"killed_at_every_chunk_edge", "kill_9_loses_nothing"},  # they count batches, which an idle source then lacks
    ),
    "LeavesNullsOut": ({"null_absent_and_unavailable_are_three_things"}, set()),
    "MixesUpTheOrder": (
        {"changes_of_a_key_keep_their_order", "a_tombstone_follows_a_delete"},
        {"null_absent_and_unavailable_are_three_things", "resumes_from_every_position"},
    ),
    "ShowsItsSecret": ({"secrets_are_masked"}, set()),
}
GROUPS = 4
"""As many processes: most of the time is waiting."""


def test_each_broken_source_fails_where_it_is_broken(package: Path, pytester: pytest.Pytester) -> None:
    (package / "tests" / "test_broken.py").write_text(BROKEN)
    limits = ["--conformance-blocked-s", "0.2", "--conformance-patience-s", "4", "--conformance-stop-s", "10"]
    words = [sys.executable, "-m", "pytest", "-q", "--tb=no", "-c", str(package / "pyproject.toml"), *limits]
    words += ["--conformance-kafka", "none", "--rootdir", str(package), "-p", "no:cacheprovider"]
    names = sorted(EXPECTED)
    running = [
        pytester.popen(
            [*words, *(f"{package}/tests/test_broken.py::Test{name}" for name in names[group::GROUPS])],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for group in range(GROUPS)
    ]
    output = "\n".join(process.communicate()[0].decode() for process in running)
    failed: dict[str, set[str]] = {name: set() for name in names}
    for suite, test in re.findall(r"^FAILED \S+::Test(\w+)::test_(\w+)", output, re.MULTILINE):
        failed[suite].add(test)
    assert not re.search("^ERROR", output, re.MULTILINE), output[-3000:]
    for name, (right, too) in EXPECTED.items():
        assert right <= failed[name], f"{name} passes {right - failed[name]}"
        assert failed[name] <= right | too, f"{name} fails elsewhere, too: {failed[name] - right - too}"
