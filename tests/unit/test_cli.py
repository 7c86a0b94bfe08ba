"""The command line turns each expected failure into one message and the right exit code, without a traceback."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import click
import pytest

from pipeline import cli
from pipeline.core.errors import ConfigError, EnvironmentProblem, Fatal


def _raise(error: BaseException) -> Callable[[], None]:
    def command() -> None:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "exit_code", "said"),
    [
        (ConfigError(["ctxpipe.yaml:3: unknown key 'kafak'", "ctxpipe.yaml:9: missing dsn"]), 2, "ctxpipe.yaml:9"),
        (EnvironmentProblem("Redis does not answer"), 3, "Redis does not answer"),
        (Fatal("the slot is gone"), 3, "the slot is gone"),
        (click.UsageError("No such option"), 2, "No such option"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (click.exceptions.Exit(1), 1, ""),
    ],
)
def test_failures_become_messages(
    error: BaseException,
    exit_code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = click.Command("status", callback=_raise(error))
    monkeypatch.setattr(cli.Commands, "get_command", lambda *_: command)
    assert cli.run(["status"]) == exit_code
    shown = capsys.readouterr()
    assert said in shown.err
    assert shown.out == ""


def test_every_listed_command_can_be_loaded() -> None:
    context = click.Context(cli.cli)
    names = cli.cli.list_commands(context)
    assert {"up", "down", "status"} <= set(names)
    for name in names:
        command = cli.cli.get_command(context, name)
        assert command is not None
        assert command.help, f"ctxpipe {name} has no help text"


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys; from pipeline.cli import run; code = run(['--help']); "
        "heavy = {'faust', 'redis', 'asyncpg', 'psycopg', 'aiokafka', 'pydantic', 'rich', 'starlette'}; "
        "sys.exit(str(sorted(heavy & set(sys.modules))) if heavy & set(sys.modules) else code)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "Commands:" in done.stdout


def test_an_unknown_command_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["frobnicate"]) == 2
    assert "No such command 'frobnicate'" in capsys.readouterr().err
