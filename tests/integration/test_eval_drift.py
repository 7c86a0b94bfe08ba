"""`ctxpipe eval drift` against real HTTP servers: steady, worse, away, and on a schedule through an outage."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.evaluation.models.recordings import read_recordings
from pipeline.evaluation.scaffold import begin_suite
from pipeline.guard.faults import FaultServer
from tests.support.eventually import eventually

GOOD = json.dumps({"answer": "It comes on 2026-01-05.", "quote": "2026-01-05", "refund": False})


@pytest.fixture
async def server() -> AsyncIterator[FaultServer]:
    async with FaultServer(GOOD) as made:
        yield made


@pytest.fixture
async def suite(tmp_path: Path, server: FaultServer) -> Path:
    """The one that `eval init` makes, with this server's answers as its past."""
    folder = tmp_path / "suite"
    begin_suite(folder)
    for file in (folder / "recordings").iterdir():
        file.unlink()
    code, _, error = await run("record", folder, "--model-url", server.url("valid"), "--yes")
    assert code == 0, error
    return folder


def words_of(command: str, suite: Path, *words: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "pipeline.cli", "eval", command, str(suite), *words)


async def run(command: str, suite: Path, *words: str) -> tuple[int, str, str]:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *words_of(command, suite, *words), stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe
    )
    out, error = await asyncio.wait_for(process.communicate(), 120)
    assert process.returncode is not None and b"Traceback" not in error, error.decode()
    return process.returncode, out.decode(), error.decode()


async def drift(suite: Path, *words: str) -> tuple[int, Any]:
    code, out, error = await run("drift", suite, *words, "--yes", "--json")
    assert out, error
    return code, json.loads(out.splitlines()[-1])


def bytes_of(suite: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in suite.rglob("*") if file.is_file() and file.suffix != ".pyc"}


async def test_the_same_model_is_steady_and_nothing_of_the_suite_changes(
    suite: Path, server: FaultServer, tmp_path: Path
) -> None:
    before, asked = bytes_of(suite), sum(server.asked.values())
    kept, file = tmp_path / "kept", tmp_path / "drift.prom"
    words = ("--model-url", server.url("valid"), "--draws", "2", "--keep", str(kept), "--prometheus", str(file))
    code, told = await drift(suite, *words)
    assert (code, told["verdict"], told["difference"], told["lost"]) == (0, "steady", 0.0, {})
    assert told["other_answers"] == 0.0 and told["other_models"] == [] and told["cases"] == told["pairs"] > 3
    assert told["calls"] == sum(server.asked.values()) - asked and told["draws"] == 2 and told["cost"] > 0
    assert bytes_of(suite) == before
    draws = [[one.key for one in read_recordings(kept / f"draw-{number}")] for number in (0, 1)]
    assert draws[0] == draws[1] and 2 * len(draws[0]) == told["calls"]
    assert 'ctxpipe_eval_drift_verdict{suite="support"} 0.0' in file.read_text()


async def test_a_model_that_got_worse_is_named_with_its_cases(tmp_path: Path, server: FaultServer) -> None:
    suite = tmp_path / "begun"
    begin_suite(suite)
    server.content = json.dumps({"answer": "On 5 January.", "quote": "soon", "refund": False})
    code, out, _ = await run("drift", suite, "--model-url", server.url("valid"), "--yes")
    assert code == 1 and "support: worse: the answers got worse" in out, out
    assert "fell output/when: 1.00 → " in out and "large was gpt-4o-mini and says now scripted" in out
    assert "100% of the requests were answered in other words" in out


async def test_an_endpoint_that_is_away_is_no_drift(suite: Path, server: FaultServer) -> None:
    code, told = await drift(suite, "--model-url", server.url("error_503"))
    assert (code, told["verdict"]) == (3, "undecided")
    assert len(told["lost"]) == told["cases"] and "answered 503" in told["why"]


async def test_a_suite_without_a_past_and_bad_words_decide_nothing(suite: Path, server: FaultServer) -> None:
    for words, told in (
        (("--every", "soon"), "--every 'soon' is no duration"),
        (("--every", "0s"), "never rests"),
        (("--metrics-port", "0"), "--metrics-port goes with --every"),
        (("--only", "trase"), "did you mean trace?"),
        (("--model-url", server.url("valid"), "--ask-above", "0"), "say --yes"),
    ):
        code, _, error = await run("drift", suite, *words)
        assert code == 3 and told in error, error
    for file in (suite / "recordings").iterdir():
        file.unlink()
    code, _, error = await run("drift", suite, "--model-url", server.url("valid"), "--yes")
    assert code == 3 and "has no recorded past to compare with" in error and "there is no recording of what" in error


async def test_on_a_schedule_it_outlives_an_outage(suite: Path, server: FaultServer) -> None:
    """Steady, then nobody answers, then steady again; the metrics tell each, and SIGTERM ends it in order."""
    script, pipe = "valid", asyncio.subprocess.PIPE
    words = ("--every", "1s", "--yes", "--json", "--metrics-port", "0", "--model-url", server.url(script))
    process = await asyncio.create_subprocess_exec(*words_of("drift", suite, *words), stdout=pipe, stderr=pipe)
    assert process.stdout is not None and process.stderr is not None
    address = (await asyncio.wait_for(process.stderr.readline(), 60)).decode().split()[-1]
    looks = process.stdout
    errors = asyncio.create_task(process.stderr.read())

    async def look_of(verdict: str) -> Any:
        while True:
            told = json.loads(await asyncio.wait_for(looks.readline(), 60))
            if told["verdict"] == verdict:
                return told

    try:
        assert (await look_of("steady"))["why"]
        port = server.port
        await server.stop()
        assert "unreachable" in str((await look_of("undecided"))["lost"])
        page = (await asyncio.to_thread(urllib.request.urlopen, address)).read().decode()
        assert 'ctxpipe_eval_drift_verdict{suite="support"} 3.0' in page
        assert 'ctxpipe_eval_drift_points{suite="support"} 0.0' in page, "the last figures stay"
        server.port = port
        await server.start()
        await look_of("steady")
        manifest = (suite / "suite.yaml").read_text()
        (suite / "suite.yaml").write_text("suite: [")
        assert "suite.yaml" in (await look_of("undecided"))["why"]
        (suite / "suite.yaml").write_text(manifest)
        await look_of("steady")
    finally:
        process.send_signal(signal.SIGTERM)
    await eventually(lambda: process.returncode is not None)
    assert process.returncode == 0 and b"Traceback" not in await errors
