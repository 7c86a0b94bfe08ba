"""The base of every local server: one process, one port, one data directory, one log file."""

from __future__ import annotations

import json
import shutil
import signal
from abc import ABC, abstractmethod
from pathlib import Path

from deploy.local.processes import ProcessMark, end, kill_tree, last_lines, port_is_free, spawn, wait_until
from pipeline.core.errors import EnvironmentProblem

PORT_TIMEOUT_S = 2.0


class Server(ABC):
    """A real server under our control, in this process or in a later one: its process is remembered in a file.

    Order of calls: `start` (or `launch` and later `wait_ready`), then any of `stop`, `kill`, `pause`, `resume`,
    `restart`; a stopped or killed server can be started again on the same port with its data. All calls block.
    Whatever the environment refuses is an EnvironmentProblem that names the log file.
    """

    kind: str
    ready_timeout_s: float = 60.0
    stop_signal: int = signal.SIGTERM
    user: str | None = None

    def __init__(self, data_dir: Path, port: int, *, name: str | None = None, log_dir: Path | None = None) -> None:
        self.name = name or self.kind
        self.data_dir = data_dir
        self.port = port
        self.log_file = (log_dir or data_dir.parent / "logs") / f"{self.name}.log"
        self.mark_file = self.log_file.with_suffix(".process.json")

    @property
    @abstractmethod
    def address(self) -> str:
        """What a client needs to connect."""

    @abstractmethod
    def prepare(self) -> None:
        """Write configuration and create the data directory where it is missing."""

    @abstractmethod
    def command(self) -> list[str]:
        """The command line that runs the server in the foreground."""

    @abstractmethod
    def answers(self) -> bool:
        """One probe: does the server serve requests?"""

    def start(self) -> None:
        """Start, and return when the server answers."""
        self.launch()
        self.wait_ready()

    def launch(self) -> None:
        """Start the process without waiting for it."""
        if self.running():
            return
        self.require_free_port()
        self.prepare()
        self._remember(spawn(self.command(), self.log_file, self.user))

    def require_free_port(self) -> None:
        """Raises when another program holds the port; one that was just killed may hold it for a moment longer."""
        if not wait_until(lambda: port_is_free(self.port), PORT_TIMEOUT_S):
            raise EnvironmentProblem(
                f"{self.name}: port {self.port} is in use by another program. "
                f"End that program, or choose another port (ctxpipe up --port {self.name}=PORT)."
            )

    def wait_ready(self) -> None:
        """Return when the server answers; raise when its process ends or the time is up."""
        answered = wait_until(lambda: not self.running() or self.answers(), self.ready_timeout_s)
        if answered and self.running():
            return
        what = f"did not answer within {self.ready_timeout_s:.0f} s" if self.running() else "ended while starting"
        raise EnvironmentProblem(f"{self.name} {what}. Its log {self.log_file} ends with:\n{self.log_tail()}")

    @property
    def process(self) -> ProcessMark | None:
        """The process last started under this name and log directory, by whichever program started it."""
        try:
            return ProcessMark(**json.loads(self.mark_file.read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def running(self) -> bool:
        process = self.process
        return process is not None and process.alive()

    def stop(self) -> None:
        """End it in its own orderly way; after 30 s by force."""
        if process := self.process:
            end(process, self.stop_signal)
            self.mark_file.unlink(missing_ok=True)

    def kill(self) -> None:
        """kill -9, children included; nothing is flushed."""
        if process := self.process:
            kill_tree(process)
            self.mark_file.unlink(missing_ok=True)

    def restart(self) -> None:
        """Stop and start on the same port with the same data."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Freeze the process (SIGSTOP): connections stay open, nothing answers."""
        if process := self.process:
            process.send(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused process go on."""
        if process := self.process:
            process.send(signal.SIGCONT)

    def remove_data(self) -> None:
        """Delete the data directory of a server that is not running."""
        if self.running():
            raise EnvironmentProblem(f"{self.name} is running; stop it before its data is removed.")
        shutil.rmtree(self.data_dir, ignore_errors=True)

    def _remember(self, process: ProcessMark) -> None:
        self.mark_file.write_text(json.dumps({"pid": process.pid, "started": process.started}))

    def log_tail(self) -> str:
        """The last lines of the log, for messages."""
        return last_lines(self.log_file.read_text(errors="replace")) if self.log_file.exists() else "  | (no log)"
