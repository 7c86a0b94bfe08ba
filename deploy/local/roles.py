"""ctxpipe's own roles as child processes on a stack: what demo, benchmarks and chaos tests start and kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pipeline.core.errors import EnvironmentProblem

_STOP_TIMEOUT_S = 30.0
_LOG_TAIL_LINES = 15


class Role:
    """One `ctxpipe` command in a process of its own; its output goes to a log file."""

    def __init__(self, arguments: Sequence[str], log_file: Path, environment: Mapping[str, str] | None = None) -> None:
        self.arguments, self.log_file = list(arguments), log_file
        self._environment = {**os.environ, **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        if self._process is None:
            raise EnvironmentProblem(f"ctxpipe {' '.join(self.arguments)} was not started")
        return self._process.pid

    def start(self) -> Role:
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        with self.log_file.open("ab") as log:
            command = [sys.executable, "-m", "pipeline.cli", *self.arguments]
            # A session of its own, so that Ctrl-C in the terminal reaches us alone and we end it in order.
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._environment, start_new_session=True
            )
        return self

    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def ensure_running(self) -> None:
        """Raises EnvironmentProblem with the end of the log when the process has ended."""
        if not self.running():
            raise EnvironmentProblem(
                f"ctxpipe {' '.join(self.arguments)} ended unexpectedly."
                f" Its log {self.log_file} ends with:\n{self.tail()}"
            )

    def stop(self) -> int | None:
        """SIGTERM, and SIGKILL after 30 s; the exit code."""
        if self._process is None:
            return None
        if self._process.poll() is None:
            self._signal(signal.SIGTERM)
            try:
                self._process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.kill()
        return self._process.returncode

    def kill(self) -> None:
        """kill -9 of the process and its children: nothing is flushed, nobody says goodbye."""
        if self._process is not None:
            self._signal(signal.SIGKILL, group=True)
            self._process.wait()

    def tail(self) -> str:
        try:
            return "\n".join(self.log_file.read_text(errors="replace").splitlines()[-_LOG_TAIL_LINES:])
        except OSError:
            return "(no log)"

    def _signal(self, number: int, group: bool = False) -> None:
        assert self._process is not None
        try:
            if group:
                os.killpg(self._process.pid, number)
            else:
                self._process.send_signal(number)
        except ProcessLookupError:
            pass


def wait_for(
    condition: Callable[[], object], timeout_s: float, what: str, roles: Sequence[Role] = (), pause_s: float = 0.1
) -> None:
    """Polls `condition` until it is true; raises EnvironmentProblem on time-out or when one of `roles` has ended."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        for role in roles:
            role.ensure_running()
        if time.monotonic() > deadline:
            raise EnvironmentProblem(f"{what} took longer than {timeout_s:.0f} s")
        time.sleep(pause_s)
