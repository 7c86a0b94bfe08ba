"""The topics kind of the conformance kit passes a deployment that keeps its promises, and finds what is broken."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from connectors.conformance.topics_harness import undeclared
from connectors.conformance.topics_suite import TopicsSuite
from tests.support.cli import ROOT
from tests.support.relay_topics import RelayTopics

pytestmark = [pytest.mark.servers, pytest.mark.timeout(300)]

SUITE = """
from connectors.conformance.topics_suite import TopicsSuite
import pytest
from tests.support.relay import FAULTS
from tests.support.relay_topics import RelayTopics

@pytest.fixture
async def harness(request, tmp_path, conformance_kafka):
    async with request.cls.harness_type(tmp_path, conformance_kafka) as harness:
        yield harness

class TestWhole(TopicsSuite):
    harness_type = RelayTopics

for fault in FAULTS:
    harness_type = type(fault, (RelayTopics,), {"fault": fault})
    globals()["Test" + fault] = type("Test" + fault, (TopicsSuite,), {"harness_type": harness_type, "only": ONLY})
del fault, harness_type
"""
# Where it must fail, and where the same fault may show, too; everywhere else it must pass.
EXPECTED: dict[str, tuple[set[str], set[str]]] = {
    "loses": ({"kill_9_loses_nothing"}, {"ended_while_idle_it_leaves_no_process"}),
    "reorders": ({"changes_of_a_row_keep_their_order"}, {"a_tombstone_follows_a_delete"}),
    "drops_nulls": ({"null_absent_and_unavailable_are_three_things"}, set()),
    "forgets_tombstones": ({"a_tombstone_follows_a_delete"}, set()),
    "leaks": ({"ended_while_idle_it_leaves_no_process"}, set()),
    "scatters": ({"changes_of_a_row_keep_their_order"}, {"a_tombstone_follows_a_delete"}),
    "disguises": ({"rows_that_were_there_before_say_so"}, set()),
    "babbles": ({"an_idle_deployment_goes_on"}, {"null_absent_and_unavailable_are_three_things"}),
}
ONLY = tuple(f"test_{name}" for name in sorted({name for right, _ in EXPECTED.values() for name in right}))
GROUPS = 3


def run_in_groups(folder: Path, kafka: str) -> str:
    """Output of all, by as many processes: most of the time is waiting."""
    file = folder / "test_relays.py"
    file.write_text(f"ONLY = {ONLY!r}\n{SUITE}")
    words = [sys.executable, "-m", "pytest", "-q", "--tb=line", "-p", "no:cacheprovider", "--rootdir", str(folder)]
    words += ["-c", str(ROOT / "pyproject.toml"), "--conformance-kafka", kafka, "--conformance-patience-s", "5"]
    names = ["Whole", *sorted(EXPECTED)]
    running = [
        subprocess.Popen(
            [*words, *(f"{file}::Test{name}" for name in names[group::GROUPS])],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for group in range(GROUPS)
    ]
    return "\n".join(process.communicate()[0] for process in running)


def test_each_broken_deployment_fails_where_it_is_broken(tmp_path: Path, kafka_bootstrap: str) -> None:
    output = run_in_groups(tmp_path, kafka_bootstrap)
    assert not re.search("^ERROR", output, re.MULTILINE), output[-3000:]
    failed: dict[str, set[str]] = {name: set() for name in EXPECTED}
    for suite, test in re.findall(r"^FAILED \S+::Test(\w+)::test_(\w+)", output, re.MULTILINE):
        failed.setdefault(suite, set()).add(test)
    assert "Whole" not in failed, output[-3000:]
    for name, (right, too) in EXPECTED.items():
        assert right <= failed[name], f"{name} passes {right - failed[name]}"
        assert failed[name] <= right | too, f"{name} fails elsewhere, too: {failed[name] - right - too}"
    assert "TestWhole: not applicable: Beating: it writes no heartbeats (1)" in output
    assert "TestWhole: rows up to 500,000 bytes: its producer takes requests of 1 MB" in output
    assert "TestWhole: not applicable to a deployment: resuming from every position" in output


def test_an_ability_that_is_left_open_is_an_error() -> None:
    open_reasons = {
        name: why for name, why in RelayTopics.not_applicable.items() if name not in ("Late", "row_bytes_max")
    }
    silent = type("Silent", (RelayTopics,), {"not_applicable": {**open_reasons, "Typed": "has it, and denies it"}})
    assert [one.split()[0:3] for one in undeclared(silent)] == [
        ["neither", "has", "Late"],
        ["has", "Typed", "and"],
        ["row_bytes_max", "is", "below"],
    ]
    with pytest.raises(TypeError, match="neither has Late"):
        type("TestSilent", (TopicsSuite,), {"harness_type": silent})
