"""pytest's side of the kit: options, fixtures, which tests of a suite are collected, what a failure says."""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from connectors.conformance.limits import Limits

_OF_SOURCES = ("configuration", "kafka", "killed", "operations", "positions", "records", "snapshots")
_WITH_TESTS = (*_OF_SOURCES, "deployed", "topics_operations", "topics_records", "topics_suite")
pytest.register_assert_rewrite(*[f"connectors.conformance.{name}" for name in _WITH_TESTS])

KAFKA_VARIABLE = "CTXPIPE_CONFORMANCE_KAFKA"
_LEFT_OUT = pytest.StashKey[dict[str, dict[str, list[str]]]]()
"""Suite → why → tests."""
_TOLD = pytest.StashKey[dict[str, list[str]]]()
"""Suite → what else the end of the run says of it."""
_SEED = pytest.StashKey[int]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("conformance", "conformance of connectors (ctxpipe)")
    group.addoption("--conformance-kafka", metavar="HOST:PORT", default=os.environ.get(KAFKA_VARIABLE, ""),
                    help=f"Kafka for the test that goes through it; also {KAFKA_VARIABLE}. Default: one is started "
                         "where its files are installed; 'none': that test is left out; 'own': the "
                         "tests override the fixture conformance_kafka.")  # fmt: skip
    group.addoption("--conformance-blocked-s", metavar="SECONDS", type=float, default=2.0,
                    help="How long the sink is blocked; 90 before a release. Default: 2.")  # fmt: skip
    group.addoption("--conformance-stop-s", metavar="SECONDS", type=float, default=2.0,
                    help="How long a cancelled source may take to be closed. Default: 2.")  # fmt: skip
    group.addoption(
        "--conformance-patience-s",
        metavar="SECONDS",
        type=float,
        default=40.0,
        help="How long to wait for what must come about. Default: 40.",
    )
    group.addoption("--conformance-seed", metavar="NUMBER", type=int, help="Repeats a run's random choices.")


def pytest_configure(config: pytest.Config) -> None:
    seed = config.getoption("--conformance-seed")
    config.stash[_SEED] = seed if seed is not None else random.randrange(2**31)
    config.stash[_LEFT_OUT] = {}
    config.stash[_TOLD] = {}
    Limits.patience_s = config.getoption("--conformance-patience-s")


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makeitem(collector: Any, name: str, obj: object) -> list[Any] | None:
    """An empty list for a test of an ability that the subclass's harness and source lack."""
    harness_type = getattr(getattr(collector, "cls", None), "harness_type", None)
    if harness_type is None or not name.startswith("test_"):
        return None
    from connectors.conformance.harness import misses

    only = getattr(collector.cls, "only", ())
    if only and name not in only:
        return []
    told = getattr(collector.cls, "tells", None)
    if told is not None:
        collector.config.stash[_TOLD][collector.name] = told()
    reasons = getattr(harness_type, "not_applicable", {})
    missing = [name] if name in reasons else misses(obj, harness_type)
    if not missing and _needs_kafka(collector.cls, obj) and not _kafka_can_be_had(collector):
        missing = ["a Kafka"]
    if not missing:
        return None
    why = ", ".join(f"{one}: {reasons[one]}" if one in reasons else one for one in missing)
    collector.config.stash[_LEFT_OUT].setdefault(collector.name, {}).setdefault(why, []).append(name)
    return []


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """What was not tested, one line for each reason that a harness gives; abilities without one share a line."""
    for suite, reasons in config.stash[_LEFT_OUT].items():
        plain = [f"{why} ({len(tests)})" for why, tests in sorted(reasons.items()) if ": " not in why]
        if plain:
            terminalreporter.write_line(f"{suite}: not asked for: {'; '.join(plain)}")
        for why, tests in sorted(reasons.items()):
            if ": " in why:
                terminalreporter.write_line(f"{suite}: not applicable: {why} ({len(tests)})")
    for suite, lines in config.stash[_TOLD].items():
        for line in lines:
            terminalreporter.write_line(f"{suite}: {line}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """Every failure tells the seed and the positions that were read last."""
    report = yield
    if report.failed and hasattr(getattr(item, "cls", None), "harness_type"):
        from connectors.conformance.running import LAST_POSITIONS

        lines = [f"--conformance-seed {item.config.stash[_SEED]}", *(f"position {one}" for one in LAST_POSITIONS)]
        report.sections.append(("conformance", "\n".join(lines)))
    return report


@pytest.fixture
def conformance_random(pytestconfig: pytest.Config) -> random.Random:
    return random.Random(pytestconfig.stash[_SEED])


@pytest.fixture(scope="session")
def conformance_blocked_s(pytestconfig: pytest.Config) -> float:
    return float(pytestconfig.getoption("--conformance-blocked-s"))


@pytest.fixture(scope="session")
def conformance_stop_timeout_s(pytestconfig: pytest.Config) -> float:
    return float(pytestconfig.getoption("--conformance-stop-s"))


@pytest.fixture(scope="session")
def conformance_kafka(pytestconfig: pytest.Config) -> Iterator[str]:
    """host:port of a Kafka: the one that was named, or one of the session's own."""
    named = pytestconfig.getoption("--conformance-kafka")
    if named not in ("", "own"):
        yield named
        return
    from deploy.local import install
    from deploy.local.kafka import KafkaServer
    from deploy.local.processes import choose_port

    install.ensure(["kafka"])
    with tempfile.TemporaryDirectory(prefix="ctxpipe-conformance-") as folder:
        root = Path(folder)
        server = KafkaServer(data_dir=root / "kafka", port=choose_port(), name="kafka", log_dir=root / "logs")
        server.start()
        try:
            yield server.address
        finally:
            server.kill()


def _needs_kafka(suite: type[Any], test: object) -> bool:
    """Of the topics kind all tests that read a topic."""
    arguments = _arguments(test)
    return "conformance_kafka" in arguments or "deployed" in arguments or ("subject" in arguments and _beside(suite))


def _beside(suite: type[Any]) -> bool:
    """Its source starts a program that writes to Kafka."""
    from connectors.source import UsingKafka

    return bool(suite.harness_type.plugin.can(UsingKafka))


def _arguments(test: object) -> tuple[str, ...]:
    code = getattr(test, "__code__", None)
    return code.co_varnames[: code.co_argcount] if code is not None else ()


def _kafka_can_be_had(collector: Any) -> bool:
    named = collector.config.getoption("--conformance-kafka")
    if named:
        return bool(named != "none")
    from deploy.local import install

    return install.available("kafka")
