"""The command line as a person uses it: one process per command, its words checked for a traceback every time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]


class Done(NamedTuple):
    """A command that has ended."""

    code: int
    out: str
    err: str

    def lines(self) -> list[Any]:
        """What `--json` printed, line by line; values may hold other line ends than ours."""
        return [json.loads(line, parse_int=_integer) for line in self.out.split("\n") if line]

    def told(self) -> list[str]:
        """The lines of stderr that a person reads as messages."""
        return [line for line in self.err.splitlines() if line.startswith("ctxpipe: ")]


def _integer(text: str) -> int | Decimal:
    """Python makes no integers of more than 4300 digits from text."""
    return int(text) if len(text) < 4000 else Decimal(text)


def ctxpipe(*words: str, folder: Path, timeout_s: float = 60.0, **environment: str) -> Done:
    """Runs to its end in `folder`; fails on a traceback, whatever the exit code."""
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert "Traceback" not in done.stdout + done.stderr, f"{words}: {done.stderr[-3000:]}"
    return Done(done.returncode, done.stdout, done.stderr)
