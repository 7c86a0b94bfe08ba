"""The sidecar as a process: started, its log read and kept, its health asked for, started again when it dies.

It may never outlive this process (nobody would clean up behind it), and it may die at any time: see segments.py for why
nothing is lost by that.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import shutil
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import msgspec

from connectors.cassandra.deliveries import Deliveries
from pipeline.core.clock import Clock
from pipeline.core.errors import EnvironmentProblem

log = logging.getLogger(__name__)

LOG_BYTES_MAX = 20 << 20
TAIL_LINES = 15
HEALTH_TIMEOUT_S = 5.0
SILENT_S = 60.0
"""Without an answer to health checks, after it once answered, it counts as dead."""
STEADY_S = 60.0
DELAY_S_MAX = 30.0
TROUBLE_LINGER_S = 0.5
"""What it says right after the first sign of trouble is the cause."""

TROUBLE = re.compile(
    r"errored out|Failed to emit record|Unrecoverable error when reading commit log|Encountered a non-permissible "
    r"exception|Error occurred while processing commit log|Unexpected error while refreshing schema|"
    r"stopping all processors"
)
"""It goes on after these, without what it could not read or send; it is stopped before that is beyond recall."""
_KNOWN = re.compile(r"Added the schema for (\S+) to table schema cache")
_BEGINS = "Starting processor group"
_READ = re.compile(r"Finished reading \S*?(CommitLog-[\d-]+)\.log")
_CAUSE = re.compile(r"^Caused by: (?:[\w.$]+\.)?(\w+(?:Exception|Error))?:? ?(.*)")


class Launch(msgspec.Struct, frozen=True, kw_only=True):
    """How a sidecar is started and when it is given up."""

    command: list[str]
    log_file: Path
    http_port: int
    deaths_max: int
    restart_delay_s: float
    health_interval_s: float
    before: Callable[[], None]
    """Called before each start; may block for a moment."""
    on_read: Callable[[str], None]
    """Called with a segment each time that it has been read to its present end."""
    tables: frozenset[str] = frozenset()
    """Which it must know before it begins: it passes over changes of tables that it does not know."""
    deliveries: Deliveries = msgspec.field(default_factory=Deliveries)
    """Notes what its producer says."""


class Sidecar:
    """`run` keeps it alive until it is cancelled, and ends it then. Raises EnvironmentProblem when it keeps dying."""

    def __init__(self, launch: Launch, clock: Clock) -> None:
        self._launch = launch
        self._clock = clock
        self._process: asyncio.subprocess.Process | None = None
        self._tail: deque[str] = deque(maxlen=200)
        self._trouble: str | None = None
        self._troubled = asyncio.Event()
        self._wanted = ""
        self.starts = 0
        self.healthy = False
        """Its last health check went well."""

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    @property
    def trouble(self) -> str | None:
        """What it said that makes its present work doubtful: what it has moved aside must not be deleted."""
        return self._trouble

    @property
    def sound(self) -> bool:
        """It runs, and nothing that it said or that is wanted of it makes its present work doubtful."""
        alive = self._process is not None and self._process.returncode is None
        return alive and self._trouble is None and not self._wanted

    def restart(self, reason: str) -> None:
        """Ends it; `run` starts it again at once, and that is no death."""
        log.info("the sidecar is started again: %s", reason)
        self._wanted = reason
        self._troubled.set()

    async def run(self) -> None:
        launch = self._launch
        deaths, delay_s = 0, launch.restart_delay_s
        while True:
            began = self._clock.monotonic_s()
            cause = await self._live()
            if self._wanted:
                self._wanted = ""
                continue
            if self._clock.monotonic_s() - began > STEADY_S:
                deaths, delay_s = 0, launch.restart_delay_s
            deaths += 1
            if deaths >= launch.deaths_max:
                raise EnvironmentProblem(self._obituary(deaths, cause))
            log.warning("The sidecar died (%s); it is started again in %.1f s.", cause, delay_s)
            await self._clock.sleep(delay_s)
            delay_s = min(delay_s * 2, DELAY_S_MAX)

    async def _live(self) -> str:
        """One life. Returns how it ended."""
        await asyncio.to_thread(self._launch.before)
        self._trouble = None
        self._troubled.clear()
        self._tail.clear()
        self._launch.deliveries.forget()
        self.starts += 1
        process = self._process = await _start(self._launch.command)
        assert process.stdout is not None
        log.info("the sidecar runs as process %d, its log is %s", process.pid, self._launch.log_file)
        tasks = [
            asyncio.create_task(self._read(process.stdout), name="sidecar-log"),
            asyncio.create_task(process.wait(), name="sidecar-process"),
            asyncio.create_task(self._troubled.wait(), name="sidecar-trouble"),
            asyncio.create_task(self._ask(), name="sidecar-health"),
        ]
        try:
            await asyncio.wait(tasks[1:], return_when=asyncio.FIRST_COMPLETED)
            if self._trouble is not None:
                await self._clock.sleep(TROUBLE_LINGER_S)
        finally:
            self.healthy = False
            await _kill(process)
            await asyncio.wait(tasks[:1], timeout=5)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if self._trouble is not None:
            return self._cause()
        return f"exit code {process.returncode}"

    async def _read(self, stream: asyncio.StreamReader) -> None:
        kept, unknown = _LogFile(self._launch.log_file), set(self._launch.tables)
        deliveries = self._launch.deliveries
        try:
            while True:
                line = await _line(stream)
                if not line:
                    return
                text = line.decode(errors="replace").rstrip()
                if deliveries.note(text):
                    continue
                kept.write(line)
                self._tail.append(text)
                if read := _READ.search(text):
                    self._launch.on_read(read[1])
                if known := _KNOWN.search(text):
                    unknown.discard(known[1])
                if unknown and _BEGINS in text:
                    self._meet(f"it does not know {', '.join(sorted(unknown))}")
                elif TROUBLE.search(text):
                    self._meet(text)
        finally:
            kept.close()

    def _meet(self, trouble: str) -> None:
        if self._trouble is None:
            self._trouble = trouble
            self._troubled.set()

    async def _ask(self) -> None:
        """Returns when it answers no more."""
        heard_s: float | None = None
        while heard_s is None or self._clock.monotonic_s() - heard_s < SILENT_S:
            await self._clock.sleep(self._launch.health_interval_s)
            status = await health(self._launch.http_port)
            if status is False and (self.healthy or heard_s is None):
                log.warning("The sidecar says that it is not healthy; is the node up?")
            self.healthy = bool(status)
            if status is not None:
                heard_s = self._clock.monotonic_s()
        log.warning("The sidecar answers no health check any more; it is ended.")

    def _cause(self) -> str:
        """The innermost cause is the one that says what is wrong."""
        causes = [match for line in self._tail if (match := _CAUSE.match(line))]
        if causes:
            name, text = causes[-1].groups()
            return f"{name or 'error'}: {text}"[:500]
        return (self._trouble or "")[:500]

    def _obituary(self, deaths: int, cause: str) -> str:
        lines = "\n".join(f"  | {line[:300]}" for line in [line for line in self._tail if line.strip()][-TAIL_LINES:])
        return (
            f"The sidecar that reads Cassandra's commit log died {deaths} times: {cause}. What it has not sent stays "
            f"in cdc_raw. Its log {self._launch.log_file} ends with:\n{lines or '  | (nothing)'}"
        )


async def _line(stream: asyncio.StreamReader) -> bytes:
    """The next line of its log, b"" at the end; of one beyond the reader's limit a piece: what it could not send it
    shows with its values, after the words that count."""
    try:
        return await stream.readuntil(b"\n")
    except asyncio.IncompleteReadError as ended:
        return ended.partial
    except asyncio.LimitOverrunError as long:
        return await stream.readexactly(long.consumed)


async def health(port: int) -> bool | None:
    """What its health check says; None: no answer."""
    with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError, IndexError, ValueError):
        async with asyncio.timeout(HEALTH_TIMEOUT_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(b"GET /health HTTP/1.0\r\nHost: localhost\r\n\r\n")
                status = await reader.readline()
            finally:
                writer.close()
        return int(status.split()[1]) == 200
    return None


class _LogFile:
    """Appends, and begins a new file when one is large; one old file is kept."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO = path.open("ab")

    def write(self, line: bytes) -> None:
        if self._file.tell() > LOG_BYTES_MAX:
            self._file.close()
            self._path.replace(self._path.with_suffix(".log.1"))
            self._file = self._path.open("ab")
        self._file.write(line)
        self._file.flush()

    def close(self) -> None:
        self._file.close()


async def _start(command: list[str]) -> asyncio.subprocess.Process:
    try:
        return await asyncio.create_subprocess_exec(
            *_mortal(command),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for us; we end it in our order
            cwd="/",
            limit=1 << 20,
        )
    except OSError as error:
        raise EnvironmentProblem(f"The sidecar can't be started ({command[0]}): {error}") from error


def _mortal(command: list[str]) -> list[str]:
    """Linux ends it with us, also when we are killed: setpriv (util-linux) asks for that and becomes the command.
    Elsewhere only an orderly end takes it along."""
    setpriv = shutil.which("setpriv") if sys.platform == "linux" else None
    return [setpriv, "--pdeathsig", "KILL", *command] if setpriv is not None else command


async def _kill(process: asyncio.subprocess.Process) -> None:
    """At once: it has no orderly end, and needs none."""
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await process.wait()
