"""What is missing for the local stack is installed as root on Debian, and named in one message elsewhere."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.local import install
from pipeline.core.errors import EnvironmentProblem


@pytest.fixture(autouse=True)
def bare_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A machine whose PATH holds one empty directory, and no server programs anywhere else."""
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setenv("CTXPIPE_CACHE", str(tmp_path / "cache"))
    for name in ("postgres", "java", "java 17"):
        program = install._PROGRAMS[name]
        found = programs / name.replace(" ", "-")
        monkeypatch.setitem(
            install._PROGRAMS,
            name,
            install.Program(
                name, lambda found=found: str(found) if found.exists() else None, program.debian_package, "…"
            ),
        )
    yield programs


def _write(program: Path, text: str) -> None:
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(0o755)


def test_elsewhere_one_message_names_all_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(EnvironmentProblem) as told:
        install.ensure(["kafka", "postgres", "redis"])
    text = str(told.value)
    assert "needs 4 program(s)" in text
    assert "apt-get install default-jre-headless maven postgresql redis-server" in text
    assert all(f"  - {name}: " in text for name in ("java", "mvn", "postgres", "redis-server"))


def test_as_root_apt_get_installs_what_is_missing_and_only_that(
    monkeypatch: pytest.MonkeyPatch, bare_machine: Path, tmp_path: Path
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    log = tmp_path / "apt.log"
    _write(bare_machine / "postgres", "exit 0")
    _write(bare_machine / "env", 'while [ "${1#*=}" != "$1" ]; do shift; done; exec "$@"')
    _write(
        bare_machine / "apt-get",
        f'echo "$@" >> {log}; echo > {bare_machine}/redis-server; /bin/chmod +x {bare_machine}/*',
    )
    said: list[str] = []
    install.ensure(["postgres", "redis"], said.append)
    assert log.read_text().splitlines() == ["-qq update", "-qq install -y --no-install-recommends redis-server"]
    assert said == ["Installing redis-server with apt-get"]
    install.ensure(["postgres", "redis"], said.append)
    assert len(said) == 1, "a second time there is nothing to do"


def test_a_failing_apt_get_shows_its_last_lines(monkeypatch: pytest.MonkeyPatch, bare_machine: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    _write(bare_machine / "env", 'while [ "${1#*=}" != "$1" ]; do shift; done; exec "$@"')
    _write(bare_machine / "apt-get", "echo E: no network; exit 100")
    with pytest.raises(EnvironmentProblem, match=r"(?s)apt-get update failed.*E: no network"):
        install.ensure(["redis"])


def test_maven_fetches_once_and_a_broken_fetch_leaves_nothing(bare_machine: Path) -> None:
    _write(bare_machine / "java", "exit 0")
    _write(bare_machine / "mvn", "echo BUILD FAILURE; exit 1")
    with pytest.raises(EnvironmentProblem, match="BUILD FAILURE"):
        install.ensure(["kafka"])
    _write(
        bare_machine / "mvn", 'for word; do case $word in -DoutputDirectory=*) /bin/mkdir -p "${word#*=}";; esac; done'
    )
    said: list[str] = []
    install.ensure(["kafka"], said.append)
    install.ensure(["kafka"], said.append)
    assert len(said) == 1
    assert install.jars("kafka").is_dir()


def test_a_browser_for_tests_comes_with_its_driver(monkeypatch: pytest.MonkeyPatch, bare_machine: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(EnvironmentProblem, match=r"(?s)  - chromium: .*  - chromedriver: .*chromium chromium-driver"):
        install.ensure(["browser"])
    for name in ("google-chrome", "chromedriver"):
        _write(bare_machine / name, "exit 0")
    install.ensure(["browser"])
    assert [Path(path).name for path in install.browser_programs()] == ["google-chrome", "chromedriver"]


def test_an_unknown_server_is_named() -> None:
    with pytest.raises(EnvironmentProblem, match="'mysql'"):
        install.ensure(["mysql"])
