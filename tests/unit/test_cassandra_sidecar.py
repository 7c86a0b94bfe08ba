"""The sidecar of a Cassandra source without Cassandra: the node's change log on disk, and the process itself."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from connectors.cassandra import segments
from connectors.cassandra.sidecar import Launch, Sidecar
from pipeline.core.clock import SystemClock
from pipeline.core.errors import EnvironmentProblem

# ---- cdc_raw


@pytest.fixture
def files(tmp_path: Path) -> segments.NodeFiles:
    for name in ("raw", "log", "relocated/archive", "relocated/error"):
        (tmp_path / name).mkdir(parents=True)
    return segments.NodeFiles(
        cdc_enabled=True,
        cdc_raw=tmp_path / "raw",
        commitlog=tmp_path / "log",
        total_bytes=1000,
        segment_bytes=50,
        blocks_writes=True,
    )


def write_segment(files: segments.NodeFiles, number: int, index: str, size: int = 10, alive: bool = True) -> str:
    name = f"CommitLog-7-{number}"
    (files.cdc_raw / f"{name}.log").write_bytes(b"x" * size)
    (files.cdc_raw / f"{name}_cdc.idx").write_text(index)
    if alive:
        (files.commitlog / f"{name}.log").write_bytes(b"x" * size)
    return name


def test_segments_are_seen_as_the_node_left_them(files: segments.NodeFiles) -> None:
    write_segment(files, 30, "5")
    write_segment(files, 10, "9\nCOMPLETED", alive=False)
    write_segment(files, 20, "7", alive=False)
    (files.cdc_raw / "CommitLog-7-40_cdc.idx").write_text("1")  # its log is gone
    picture = segments.look(files)
    assert [(one.number, one.synced, one.completed, one.abandoned) for one in picture.segments] == [
        (10, 9, True, False),
        (20, 7, False, True),
        (30, 5, False, False),
    ]
    segments.complete(files, picture.segments[1])
    assert segments.look(files).segments[1].completed
    assert segments.unread_bytes(picture, {"CommitLog-7-10": 9, "CommitLog-7-20": 3}) == 4 + 5


@pytest.mark.parametrize(
    ("size", "blocks", "severity", "words"),
    [
        (100, True, "ok", "0 of 0 MiB (10%)"),
        (600, True, "warning", "the node refuses writes to these tables when it is full"),
        (960, True, "unfit", "the node refuses writes to these tables now"),
        (600, False, "warning", "deletes the oldest changes when it is full, and they are lost"),
        (960, False, "unfit", "deletes the oldest changes now"),
    ],
)
def test_a_full_cdc_raw_is_told_with_what_the_node_does(
    files: segments.NodeFiles, size: int, blocks: bool, severity: str, words: str
) -> None:
    policy = segments.NodeFiles(
        cdc_enabled=True,
        cdc_raw=files.cdc_raw,
        commitlog=files.commitlog,
        total_bytes=1000,
        segment_bytes=50,
        blocks_writes=blocks,
    )
    finding = segments.fill_finding(segments.Picture([], size), policy, 0.5)
    assert finding.severity == severity and words in finding.message


def test_a_segment_that_vanishes_unread_is_noticed_also_after_a_restart(
    files: segments.NodeFiles, tmp_path: Path
) -> None:
    ledger = segments.Ledger(tmp_path / "segments.json")
    assert ledger.compare(["a", "b", "c"], []) == []
    assert ledger.compare(["b", "c"], ["a"]) == []
    ledger.done(["a"])
    again = segments.Ledger(tmp_path / "segments.json")
    assert again.compare(["c"], []) == ["b"] and again.compare(["c"], []) == ["b"]
    again.forget()
    assert segments.Ledger(tmp_path / "segments.json").compare(["c", "d"], []) == []


def test_a_segment_that_is_brought_back_during_a_look_is_not_lost(
    files: segments.NodeFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sidecar's next start moves it from the place that is looked at second to the one looked at first."""
    ledger, relocated = segments.Ledger(tmp_path / "segments.json"), tmp_path / "relocated"
    name = write_segment(files, 1, "1\nCOMPLETED")
    for path in list(files.cdc_raw.glob(f"{name}*")):
        path.rename(relocated / "archive" / path.name)
    assert segments.compared(ledger, files, relocated)[1:] == ([name], [])
    names = segments.relocated_names

    def meanwhile(directory: Path) -> list[str]:
        segments.bring_back(directory, files)
        return names(directory)

    monkeypatch.setattr(segments, "relocated_names", meanwhile)
    picture, _, lost = segments.compared(ledger, files, relocated)
    assert lost == [] and [one.name for one in picture.segments] == [name]
    for path in files.cdc_raw.glob(f"{name}*"):
        path.unlink()
    assert segments.compared(ledger, files, relocated)[2] == [name]


def test_what_was_moved_aside_comes_back_or_is_deleted(files: segments.NodeFiles, tmp_path: Path) -> None:
    relocated = tmp_path / "relocated"
    names = [write_segment(files, number, "1\nCOMPLETED") for number in (1, 2)]
    for folder, name in zip(("archive", "error"), names, strict=True):
        for path in list(files.cdc_raw.glob(f"{name}*")):
            path.rename(relocated / folder / path.name)
    assert segments.relocated_names(relocated) == names and segments.look(files).segments == []
    segments.delete(relocated, names[:1])
    assert segments.bring_back(relocated, files) == names[1:]
    assert [one.name for one in segments.look(files).segments] == names[1:]


def test_cassandra_yaml_tells_the_directories_in_both_spellings_of_sizes(tmp_path: Path) -> None:
    path = tmp_path / "cassandra.yaml"
    where = {"cdc_raw_directory": str(tmp_path / "raw"), "commitlog_directory": str(tmp_path / "log")}
    path.write_text(json.dumps({**where, "cdc_enabled": True, "cdc_total_space": "2GiB", "cdc_block_writes": False}))
    files = segments.node_files(path)
    assert files.cdc_enabled and not files.blocks_writes and files.total_bytes == 2 << 30
    assert files.segment_bytes == 32 << 20
    path.write_text(json.dumps({**where, "cdc_total_space_in_mb": 3}))
    assert segments.node_files(path).total_bytes == 3 << 20 and not segments.node_files(path).cdc_enabled
    path.write_text("{}")
    with pytest.raises(EnvironmentProblem, match="cdc_raw_directory to a default"):
        segments.node_files(path)
    assert segments.node_files(path, tmp_path, tmp_path).total_bytes > 0
    with pytest.raises(EnvironmentProblem, match="can't be read"):
        segments.node_files(tmp_path / "missing.yaml")


# ---- the sidecar as a process


def a_sidecar(tmp_path: Path, script: str, read: list[str] | None = None, **changed: Any) -> Sidecar:
    known: dict[str, Any] = {
        "command": [sys.executable, "-u", "-c", script],
        "log_file": tmp_path / "sidecar.log",
        "http_port": 1,
        "deaths_max": 3,
        "restart_delay_s": 0.01,
        "health_interval_s": 60.0,
        "before": lambda: None,
        "on_read": (read if read is not None else []).append,
    }
    return Sidecar(Launch(**{**known, **changed}), SystemClock())


async def test_one_that_keeps_dying_ends_with_its_last_words(tmp_path: Path) -> None:
    starts: list[int] = []
    script = "print('no such node'); raise SystemExit(7)"
    sidecar = a_sidecar(tmp_path, script, before=lambda: starts.append(1))
    with pytest.raises(EnvironmentProblem) as told:
        await sidecar.run()
    assert "died 3 times: exit code 7" in str(told.value) and "| no such node" in str(told.value)
    assert len(starts) == 3 and (tmp_path / "sidecar.log").read_text().count("no such node") == 3


async def test_one_that_goes_on_without_what_it_could_not_read_is_ended(tmp_path: Path) -> None:
    script = (
        "import time; print('ERROR CommitLogIdxParser Processing of x errored out');"
        "print('Caused by: java.lang.ClassCastException: no cell'); time.sleep(600)"
    )
    with pytest.raises(EnvironmentProblem, match="ClassCastException: no cell"):
        await a_sidecar(tmp_path, script, deaths_max=1).run()


async def test_what_it_could_not_send_is_told_however_long_the_row_is(tmp_path: Path) -> None:
    script = "import time; print('Failed to emit record ' + 'x' * 5_000_000, flush=True); time.sleep(600)"
    with pytest.raises(EnvironmentProblem, match="Failed to emit record"):
        await a_sidecar(tmp_path, script, deaths_max=1).run()


async def test_one_that_does_not_know_a_table_is_ended_before_it_passes_over_its_changes(tmp_path: Path) -> None:
    script = (
        "import time; print('INFO SchemaHolder Added the schema for ks.a to table schema cache.');"
        "print('INFO Task Starting processor group ...'); time.sleep(600)"
    )
    sidecar = a_sidecar(tmp_path, script, deaths_max=1, tables=frozenset({"ks.a", "ks.b"}))
    with pytest.raises(EnvironmentProblem, match=r"it does not know ks\.b"):
        await sidecar.run()


async def test_it_is_started_again_on_request_and_that_is_no_death(tmp_path: Path) -> None:
    read: list[str] = []
    script = "import time; print('Finished reading /raw/CommitLog-7-12.log'); time.sleep(600)"
    sidecar = a_sidecar(tmp_path, script, read, deaths_max=1)
    running = asyncio.create_task(sidecar.run())
    for starts in (1, 2, 3):
        while sidecar.starts < starts or len(read) < starts:
            assert not running.done()
            await asyncio.sleep(0.01)
        sidecar.restart("the schema changed")
    assert read[:3] == ["CommitLog-7-12"] * 3
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
