"""JSON Lines files in the conformance kit, and what only files can do: half lines, broken lines, rotation, deletion."""

from __future__ import annotations

import base64
import gzip
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from connectors.conformance.running import Subject
from connectors.conformance.suite import SourceSuite
from connectors.registry import configure_one
from connectors.set_aside import decode_set_aside
from connectors.source import Resetting
from pipeline.core.errors import ConfigError
from schemas.topics import dead_letter_topic
from tests.support.jsonlines_conformance import LOG, CutOffJsonLines, JsonLinesConformance


class TestJsonLines(SourceSuite):
    harness_type = JsonLinesConformance

    @pytest.fixture
    async def harness(self, tmp_path: Path) -> AsyncIterator[JsonLinesConformance]:
        yield JsonLinesConformance(tmp_path)


class TestCutOffJsonLines(SourceSuite):
    harness_type = CutOffJsonLines
    only = ("test_a_lost_position_is_refused",)

    @pytest.fixture
    async def harness(self, tmp_path: Path) -> AsyncIterator[CutOffJsonLines]:
        yield CutOffJsonLines(tmp_path)


@pytest.fixture
def harness(tmp_path: Path) -> JsonLinesConformance:
    return JsonLinesConformance(tmp_path)


@pytest.fixture
def subject(harness: JsonLinesConformance) -> Subject:
    return Subject(harness)


async def test_half_a_line_waits_for_its_end(harness: JsonLinesConformance, subject: Subject) -> None:
    await subject.write({1: "whole"})
    async with subject.running() as running:
        await running.until_equal()
        with (harness.folder / LOG).open("ab", buffering=0) as file:
            file.write(b'{"id": 2, "v": "ha')
            await subject_beats(running, 3)
            assert b'"ha' not in b"".join(record.value or b"" for record in running.sink.records)
            file.write(b'lf"}\n')
        await running.until(lambda: b'"half"' in (running.sink.records[-1].value or b""), "the whole line")


async def test_broken_lines_are_set_aside_and_the_others_go_on(harness: JsonLinesConformance, subject: Subject) -> None:
    broken = ["{", "[1]", '"text"', '{"v": "no key"}', '{"id": null}', '{"id": [1]}', b'{"id": "\xff"}']
    harness.append(*broken, "", "   ")
    await subject.write({1: "after them"})
    async with subject.running() as running:
        await running.until(
            lambda: any(b"after them" in (one.value or b"") for one in running.sink.records), "the row after them"
        )
    letters = [one for one in running.sink.records if one.topic == dead_letter_topic("conformance")]
    lines = [base64.b64decode(decode_set_aside(one.value).row["line"] or "") for one in letters]
    assert lines == [line if isinstance(line, bytes) else line.encode() for line in broken]
    assert len({one.key for one in letters}) == len(broken)
    assert all(LOG in decode_set_aside(one.value).reason for one in letters)


async def test_a_line_that_is_too_long_is_set_aside_whole(harness: JsonLinesConformance) -> None:
    section = {**harness.section(), "line_bytes_max": 10_000}
    harness.section = lambda: section  # type: ignore[method-assign]
    subject = Subject(harness)
    harness.append('{"id": 1, "v": "' + "x" * 50_000 + '"}')
    await subject.write({2: "after it"})
    async with subject.running() as running:
        await running.until_equal()
    letters = [one for one in running.sink.records if one.topic == dead_letter_topic("conformance")]
    assert [decode_set_aside(one.value).reason.split(" (")[0] for one in letters] == [
        "The line is longer than line_bytes_max."
    ]


async def test_a_finished_file_may_vanish_while_nobody_reads(harness: JsonLinesConformance, subject: Subject) -> None:
    await subject.write({1: "old"})
    async with subject.running() as running:
        await running.until_equal()
        await harness.switch()
        await subject.write({2: "new"})
        await running.until_equal()
    (harness.folder / f"{LOG}.1").unlink()
    async with subject.running(running.sink, running.positions) as again:
        await subject.write({3: "newer"})
        await again.until_equal()
        await again.until(lambda: len(again.positions.saved[-1]["tables"]["files.orders"]["files"]) == 1, "forgotten")


async def test_compressed_files_are_left_alone(harness: JsonLinesConformance, subject: Subject) -> None:
    await subject.write({1: "old"})
    async with subject.running() as running:
        await running.until_equal()
        await harness.switch()
        await subject.write({2: "new"})
        await running.until_equal()
        compressed = gzip.compress((harness.folder / f"{LOG}.1").read_bytes() * 100) + b"\n"
        (harness.folder / f"{LOG}.1.gz").write_bytes(compressed)
        (harness.folder / f"{LOG}.1").unlink()
        await subject.write({3: "newer"})
        await running.until_equal()
    assert not [one for one in running.sink.records if one.topic == dead_letter_topic("conformance")]


async def test_what_was_written_before_a_deletion_is_read(harness: JsonLinesConformance, subject: Subject) -> None:
    await subject.write({1: "old"})
    async with subject.running() as running:
        await running.until_equal()
        running.sink.hold()
        await subject.write(dict.fromkeys(range(2, 2000), "x" * 2000))
        await running.until(lambda: running.sink.handed_over > 100, "it reads")
        os.unlink(harness.folder / LOG)
        running.sink.release()
        await running.until_equal()


async def test_several_rotations_while_nobody_reads(harness: JsonLinesConformance, subject: Subject) -> None:
    await subject.write({1: "first"})
    async with subject.running() as running:
        await running.until_equal()
    for number in range(4):
        await subject.write({1: f"round {number}", 10 + number: "new"})
        os.utime(harness.folder / LOG, (1_000_000_000 + number, 1_000_000_000 + number))
        await harness.switch()
    await subject.write({1: "last"})
    async with subject.running(running.sink, running.positions) as again:
        await again.until_equal()


async def test_a_backlog_moves_no_watermark(harness: JsonLinesConformance, subject: Subject) -> None:
    await subject.write(dict.fromkeys(range(500), "x" * 100))
    async with subject.running() as running:
        await running.until_equal()
        await subject.write({1: "live"})
        await running.until_equal()
    operations = [msgspec.json.decode(one.value)["op"] for one in running.sink.records if one.value]
    assert operations[:300] == ["r"] * 300 and [one for one in operations if one != "m"][-1] == "u"


async def test_a_reset_drops_what_files_no_longer_hold(harness: JsonLinesConformance, subject: Subject) -> None:
    await subject.write({1: "in the first file"})
    async with subject.running() as running:
        await running.until_equal()
    await harness.lose()
    harness._rows.clear()
    await subject.write({2: "in the second"})
    source = subject.source()
    assert isinstance(source, Resetting)
    await running.positions.save(source.reset_position())
    async with subject.running(running.sink, running.positions) as again:
        await again.until_equal()


@pytest.mark.parametrize(
    ("change", "mistake"),
    [
        ({"tables": {}}, "sources.s.tables: "),
        ({"tables": {"orders": {"files": "a", "key": ["id"]}}}, "'orders' has not two parts"),
        ({"tables": {"files.orders": {"files": "a/b", "key": ["id"]}}}, "sources.s.tables.files.orders.files: "),
        ({"tables": {"files.orders": {"files": "a", "key": []}}}, "sources.s.tables.files.orders.key: "),
        ({"tables": {"files.orders": {"file": "a", "key": ["id"]}}}, "unknown key; did you mean files?"),
    ],
)
def test_mistakes_in_the_section(harness: JsonLinesConformance, change: dict[str, Any], mistake: str) -> None:
    with pytest.raises(ConfigError) as told:
        configure_one(harness.plugin, "s", {**harness.section(), **change})
    assert mistake in str(told.value)


async def subject_beats(running: Any, more: int) -> None:
    seen = sum(record.key == b'{"__ctxpipe":"heartbeat"}' for record in running.sink.records)
    await running.until(
        lambda: sum(record.key == b'{"__ctxpipe":"heartbeat"}' for record in running.sink.records) >= seen + more,
        "time goes by",
    )
