"""What `ctxpipe lag` makes of a collector that is no collector, or not ready, or hangs."""

from __future__ import annotations

import msgspec
import pytest

from pipeline.commands._lag_asking import ask, warn_of_age
from pipeline.core.errors import Retryable
from pipeline.core.health import Health, serve
from pipeline.ops.lag.model import CollectorState, Report


def answering(body: bytes) -> str:
    pages = {"/lag": lambda: (body, "application/json")}
    return f"http://127.0.0.1:{serve(0, Health('collector'), pages=pages)}"


@pytest.mark.parametrize(
    ("body", "words"),
    [(b"{}", "first collection"), (b"<html>", "no report"), (b'{"at": "late"}', "no report")],
    ids=["not yet", "another page", "another version"],
)
async def test_what_is_no_report_is_told(body: bytes, words: str) -> None:
    with pytest.raises(Retryable, match=words):
        await ask(answering(body), 2.0)


async def test_a_report_comes_as_it_was_and_what_newer_ones_add_does_no_harm() -> None:
    seen = Report(5.0, collector=CollectorState(10.0))
    newer = msgspec.to_builtins(seen) | {"more": 1}
    assert await ask(answering(msgspec.json.encode(newer)) + "/", 2.0) == seen
    with pytest.raises(Retryable, match="answers 404"):
        await ask(answering(b"") + "/elsewhere", 2.0)


def test_a_collector_that_hangs_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    seen = Report(1_000.0, collector=CollectorState(10.0))
    warn_of_age(seen, 1_020.0)
    assert capsys.readouterr().err == ""
    warn_of_age(seen, 1_100.0)
    assert "100 s old" in capsys.readouterr().err
