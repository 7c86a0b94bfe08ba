"""Starting, recognising and ending the processes of the local stack; nothing here knows which server it is."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.core.errors import EnvironmentProblem

HOST = "127.0.0.1"
PORT_CHOICE_FIRST = 20_000
PORT_CHOICE_LAST = 32_000  # below the range the kernel hands out for outgoing connections
POLL_INTERVAL_S = 0.05
LOG_BYTES_MAX = 20 * 1024 * 1024


@dataclass(frozen=True)
class ProcessMark:
    """A process that can't be mistaken for another one that got the same pid later."""

    pid: int
    started: str

    @staticmethod
    def of(pid: int) -> ProcessMark:
        return ProcessMark(pid, _start_time(pid) or "gone")

    def alive(self) -> bool:
        """True while exactly this process runs; a zombie counts as ended."""
        child = _started_here.get(self.pid)
        if child is not None:
            return child.poll() is None  # collects it too; says "ended" only when its last thread is gone
        return _start_time(self.pid) == self.started

    def send(self, signal_number: int) -> None:
        """Signal this process and no other that may have inherited its pid."""
        if self.alive():
            try:
                os.kill(self.pid, signal_number)
            except ProcessLookupError:
                return


def spawn(
    command: Sequence[str], log_file: Path, user: str | None = None, environment: Mapping[str, str] | None = None
) -> ProcessMark:
    """Start a process that outlives this one, in a session of its own, its output appended to `log_file`."""
    log_file.parent.mkdir(parents=True, exist_ok=True)
    if log_file.exists() and log_file.stat().st_size > LOG_BYTES_MAX:
        log_file.replace(log_file.with_suffix(".log.1"))
    with log_file.open("ab") as log:
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            user=user,
            group=_group_of(user),
            extra_groups=[] if user else None,
            cwd="/",
            env={**os.environ, **(environment or {})},
        )
    _started_here[process.pid] = process
    return ProcessMark.of(process.pid)


def run(command: Sequence[str], purpose: str, user: str | None = None, timeout_s: float = 300.0) -> str:
    """Run a command to its end and return what it printed; its failure is an EnvironmentProblem with its last lines."""
    try:
        done = subprocess.run(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
            user=user,
            group=_group_of(user),
            extra_groups=[] if user else None,
            cwd="/",
        )
    except FileNotFoundError as missing:
        raise EnvironmentProblem(f"{purpose} failed: the program {command[0]} is missing.") from missing
    except subprocess.TimeoutExpired as slow:
        raise EnvironmentProblem(f"{purpose} did not end within {timeout_s:.0f} s ({command[0]}).") from slow
    if done.returncode != 0:
        raise EnvironmentProblem(f"{purpose} failed ({command[0]}, exit {done.returncode}):\n{last_lines(done.stdout)}")
    return done.stdout


def end(mark: ProcessMark, signal_number: int = signal.SIGTERM, timeout_s: float = 30.0) -> None:
    """Ask a process to end, and kill it (with its children) when it has not ended in time."""
    mark.send(signal.SIGCONT)  # a paused process would never see the request
    mark.send(signal_number)
    if not wait_until(lambda: not mark.alive(), timeout_s):
        kill_tree(mark)


def kill_tree(mark: ProcessMark) -> None:
    """kill -9 of a process and its direct children (Postgres' backends have sessions of their own)."""
    children = [ProcessMark.of(pid) for pid in _children(mark.pid)] if mark.alive() else []
    for process in [mark, *children]:
        process.send(signal.SIGKILL)
    for process in [mark, *children]:
        wait_until(lambda process=process: not process.alive(), 10.0)  # type: ignore[misc]


def wait_until(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Poll until the condition holds; False when it did not within `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_INTERVAL_S)
    return True


def port_is_free(port: int) -> bool:
    """True when a server could listen on this port of the loopback address now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
            probe.listen(1)
        except OSError:
            return False
    return True


def choose_port(preferred: int | None = None) -> int:
    """The preferred port where it is free, else any free one."""
    if preferred is not None and port_is_free(preferred):
        return preferred
    chooser = random.SystemRandom()
    for _ in range(200):
        port = chooser.randrange(PORT_CHOICE_FIRST, PORT_CHOICE_LAST)
        if port_is_free(port):
            return port
    raise EnvironmentProblem(f"No free port between {PORT_CHOICE_FIRST} and {PORT_CHOICE_LAST}; end some servers.")


def last_lines(text: str, lines_max: int = 15) -> str:
    """The end of an output, indented, for an error message."""
    kept = [line for line in text.splitlines() if line.strip()][-lines_max:]
    return "\n".join(f"  | {line}" for line in kept) or "  | (no output)"


_started_here: dict[int, subprocess.Popen[bytes]] = {}


def _group_of(user: str | None) -> int | None:
    if user is None:
        return None
    import pwd

    return pwd.getpwnam(user).pw_gid


def _start_time(pid: int) -> str | None:
    """A text that identifies the start of a running process, None when there is none or it is a zombie."""
    stat = Path(f"/proc/{pid}/stat")
    if Path("/proc/self/stat").exists():
        try:
            # the second field is the program's name in brackets and may hold anything
            fields = stat.read_text(errors="replace").rpartition(")")[2].split()
        except OSError:
            return None
        return None if fields[0] in "ZX" else fields[19]
    shown = subprocess.run(["ps", "-o", "state=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    line = shown.stdout.strip()
    return None if not line or line.startswith("Z") else line.split(maxsplit=1)[1]


def _children(pid: int) -> list[int]:
    shown = subprocess.run(["ps", "-A", "-o", "ppid=,pid="], capture_output=True, text=True, check=False)
    pairs = [line.split() for line in shown.stdout.splitlines()]
    return [int(child) for parent, child in pairs if int(parent) == pid]
