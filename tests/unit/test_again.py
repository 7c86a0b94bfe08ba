"""Which failures of a long run get a second look, and that one is all they get."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests import again

SERVED = "tests/integration/test_connect.py::test_a"


@pytest.mark.parametrize(
    ("failed", "worth"),
    [
        ([], False),
        ([SERVED], True),
        ([SERVED, "tests/unit/test_text.py::test_b"], False),
        ([f"{SERVED}[{number}]" for number in range(again.AGAIN_MAX)], True),
        ([f"{SERVED}[{number}]" for number in range(again.AGAIN_MAX + 1)], False),
    ],
)
def test_few_tests_of_servers_are_worth_another_run(failed: list[str], worth: bool) -> None:
    assert again.worth_another_run(failed) is worth


def test_a_cache_that_is_away_or_torn_names_nothing(tmp_path: Path) -> None:
    assert again.last_failed(tmp_path / "none") == []
    (tmp_path / "torn").write_text('{"a": tr')
    assert again.last_failed(tmp_path / "torn") == []


@pytest.mark.parametrize(("first", "second", "ends"), [(1, 0, 0), (1, 1, 1), (2, 0, 2), (4, 0, 4)])
def test_the_second_run_decides_only_after_failed_tests(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    first: int,
    second: int,
    ends: int,
) -> None:
    cache = tmp_path / "lastfailed"
    cache.write_text(json.dumps({SERVED: True}))
    monkeypatch.setattr(again, "last_failed", lambda: sorted(json.loads(cache.read_text())))
    run: list[list[str]] = []

    def ran(words: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        run.append(words)
        return subprocess.CompletedProcess(words, second)

    monkeypatch.setattr(again.subprocess, "run", ran)
    assert again.main([str(first)]) == ends
    assert [words[-1] for words in run] == ([SERVED] if first == again.FAILED else [])
    assert (SERVED in capsys.readouterr().err) is (first == again.FAILED and second == 0)
