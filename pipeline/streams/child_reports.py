"""What a worker process tells the one that started it: a line through a pipe every second, so that the probes of the
parent speak for all of its processes, whatever ports they have."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress

import msgspec

from pipeline.core.health import Health

EVERY_S = 1.0
SILENT_S_MAX = 30.0
READ_BYTES = 65_536


class ChildReport(msgspec.Struct, frozen=True):
    """Problems by probe and check; those of `note` change nothing."""

    live: dict[str, str] = {}
    startup: dict[str, str] = {}
    ready: dict[str, str] = {}
    note: dict[str, str] = {}

    def problems(self, probe: str) -> Mapping[str, str]:
        found: Mapping[str, str] = getattr(self, probe)
        return found


_DECODE = msgspec.json.Decoder(ChildReport).decode


def report_of(health: Health) -> ChildReport:
    """As of now."""
    ready = health.ready()
    notes = {one.name: one.problem for one in ready.seen if one.note and one.problem}
    return ChildReport(health.live().problems, health.startup().problems, ready.problems, notes)


def report_to(descriptor: int, health: Health) -> None:
    """From a thread of its own, so that a process whose event loop stands says so, until the parent is gone."""

    def tell() -> None:
        try:
            while True:
                os.write(descriptor, msgspec.json.encode(report_of(health)) + b"\n")
                time.sleep(EVERY_S)
        except OSError:
            return

    threading.Thread(target=tell, name="ctxpipe-report", daemon=True).start()


class ReportingChild:
    """A process that is told where to report to, as its last two words."""

    def __init__(self, command: Sequence[str]) -> None:
        self._read_end, write_end = os.pipe()
        os.set_blocking(self._read_end, False)
        try:
            self._process = subprocess.Popen([*command, "--report-to", str(write_end)], pass_fds=(write_end,))
        finally:
            os.close(write_end)
        self._unread, self._open = b"", True
        self.report: ChildReport | None = None
        self.reported_s = time.monotonic()
        """When it told something last, or began."""

    @property
    def pid(self) -> int:
        return self._process.pid

    def poll(self) -> int | None:
        """As subprocess.Popen, and reads what has been told."""
        ended = self._process.poll()
        self._read()
        if ended is not None and self._open:
            os.close(self._read_end)
            self._open = False
        return ended

    def send_signal(self, number: int) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        self._process.kill()

    def problems(self, probe: str, now_s: float) -> Mapping[str, str]:
        """What it told last of a probe; that it is silent, where it is."""
        silent_s = now_s - self.reported_s
        if silent_s > SILENT_S_MAX:
            return {"report": f"it has told nothing for {silent_s:.0f} s"} if probe != "note" else {}
        if self.report is None:
            return {"report": "it is starting"} if probe in ("startup", "ready") else {}
        return self.report.problems(probe)

    def _read(self) -> None:
        while self._open:
            try:
                found = os.read(self._read_end, READ_BYTES)
            except BlockingIOError:
                return
            if not found:
                return
            *lines, self._unread = (self._unread + found).split(b"\n")
            if lines:
                with suppress(msgspec.DecodeError):  # of a child that was killed in the middle of a line
                    self.report, self.reported_s = _DECODE(lines[-1]), time.monotonic()
