"""Reading the configuration again: what is safe is taken over, the rest is named, and mistakes change nothing."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.core.config import load
from pipeline.core.reloading import Reloading, changes, hears_hangups, on_hangup
from tests.support.eventually import eventually

FILE: dict[str, Any] = {
    "kafka": {"bootstrap_servers": "a:1", "group.instance.id": ""},
    "redis": {"url": "redis://user:opensesame@b:2/0"},
    "sources": {"shop": {"connector": "postgres", "dsn": "postgresql://u:hidden@c/d"}},
}


@pytest.fixture
def level() -> Iterator[logging.Logger]:
    root = logging.getLogger()
    before = root.level
    yield root
    root.setLevel(before)


def write(path: Path, **more: Any) -> Path:
    path.write_text(yaml.safe_dump({**FILE, **more}))
    return path


def test_what_is_safe_is_taken_over_and_the_rest_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, level: logging.Logger
) -> None:
    path = write(tmp_path / "ctxpipe.yaml")
    began, taken = load(path), list[float]()
    reload = Reloading(began, {"collector.interval_s": lambda new: taken.append(new.collector.interval_s)})
    write(path, running={"log_level": "debug", "drain_s": 5}, collector={"interval_s": 3})
    reload()
    assert level.level == logging.DEBUG and taken == [3]
    assert "changes that need a restart: running.drain_s" in caplog.text
    assert "taken over: collector.interval_s, running.log_level" in caplog.text
    caplog.clear()
    write(path, running={"log_level": "info", "drain_s": 5}, redis={"url": "redis://user:othersecret@b:2/0"})
    reload()
    assert level.level == logging.INFO and taken == [3, 10], "back to what it was when nothing is said"
    assert "restart: redis.url, running.drain_s" in caplog.text and "othersecret" not in caplog.text
    caplog.clear()
    path.write_text("kafka: [")
    reload()
    assert "stays as it was" in caplog.text and level.level == logging.INFO
    write(path)
    caplog.clear()
    reload()
    assert "restart" not in caplog.text, "what was changed back needs none"


def test_differences_are_found_inside_lists_and_sections_that_come_and_go(tmp_path: Path) -> None:
    old = load(write(tmp_path / "old.yaml", contexts=["a.yaml"]))
    new = load(write(tmp_path / "new.yaml", contexts=["b.yaml"], sources={"shop": {"connector": "postgres", "x": 1}}))
    assert changes(old, new) == ["contexts", "sources.shop.dsn", "sources.shop.x"]
    assert changes(old, old) == []


async def test_the_signal_reads_again_and_holds_up_nobody(
    tmp_path: Path, level: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "ctxpipe.yaml")
    monkeypatch.setattr("sys.stderr.isatty", lambda: False)
    assert hears_hangups()
    with on_hangup(Reloading(load(path))):
        write(path, running={"log_level": "error"})
        os.kill(os.getpid(), signal.SIGHUP)
        await eventually(lambda: level.level == logging.ERROR)
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
    await asyncio.sleep(0)
