"""Whether a process lives, has started and can do its work: checks by name, and the small server that tells of them.

Orchestrators of containers ask three things, and do different things with the answers:

- `/livez`: "shall I kill it?" Only what a restart mends: an event loop that stands, work that stands. Nothing here
  depends on other servers, because an outage of theirs must not end every process of ours.
- `/startupz`: has it begun, with its first snapshot or recovery behind it?
- `/readyz`: may it get work? What it shares with all its like (Redis, Kafka) degrades it and is a note: where all of
  them stand aside, nobody answers. The first thing that an orderly end changes is this answer.

`?verbose` lists the checks as Kubernetes does.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

from pipeline.core import metrics
from pipeline.core.errors import CtxpipeError, EnvironmentProblem

Probe = Literal["live", "startup", "ready", "note"]
"""What a failing check changes; a note changes nothing, and stands in `/readyz?verbose`."""
Look = Callable[[], str]
"""Why not, as a sentence; empty while all is well. Asked from another thread: it reads what is known, and never waits.
Raises nothing but CtxpipeError, whose text counts."""
Page = Callable[[], tuple[bytes, str]]
"""The body and content type of an answer."""

BEAT_EVERY_S, BEAT_LIMIT_S = 1.0, 30.0
CLIENT_TIMEOUT_S = 10.0
TEXT = "text/plain; charset=utf-8"
PATHS = {"/livez": "live", "/startupz": "startup", "/readyz": "ready"}

_LOG = logging.getLogger("ctxpipe.health")


@dataclass(frozen=True, slots=True)
class Seen:
    """What one check said; `note` where it does not count."""

    name: str
    problem: str
    note: bool = False


@dataclass(frozen=True, slots=True)
class Report:
    """The answer to one probe."""

    probe: str
    seen: tuple[Seen, ...]

    @property
    def ok(self) -> bool:
        return not self.problems

    @property
    def problems(self) -> dict[str, str]:
        """Of checks that count: name → why."""
        return {one.name: one.problem for one in self.seen if one.problem and not one.note}

    def text(self) -> str:
        """A line for each check, and the verdict."""
        lines = [_line(one) for one in self.seen]
        return "\n".join([*lines, f"{self.probe}z check {'passed' if self.ok else 'failed'}", ""])


def _line(seen: Seen) -> str:
    if not seen.problem:
        return f"[+]{seen.name} ok"
    return f"[~]{seen.name} degraded: {seen.problem}" if seen.note else f"[-]{seen.name} failed: {seen.problem}"


class Health:
    """Of one process. Make it first, add checks as the parts of the role come up, call `started` once and `stopping`
    at the very beginning of an orderly end."""

    def __init__(self, role: str, now_s: Callable[[], float] = time.monotonic) -> None:
        self.role, self._now_s = role, now_s
        self._checks: dict[str, tuple[Look, Probe]] = {}
        self._is_started = self._is_stopping = False
        self._beat_s = 0.0

    @property
    def is_stopping(self) -> bool:
        return self._is_stopping

    def check(self, name: str, look: Look, probe: Probe = "ready") -> None:
        """From now on this is asked, too; a check of the same name is replaced."""
        self._checks = {**self._checks, name: (look, probe)}

    def forget(self, name: str) -> None:
        """What it looked at is gone."""
        self._checks = {other: check for other, check in self._checks.items() if other != name}

    def started(self) -> None:
        """The role has begun its work; checks of `startup` may still keep it from being started."""
        self._is_started = True

    def stopping(self) -> None:
        """Not ready from now on."""
        self._is_stopping = True

    def beats(self, limit_s: float = BEAT_LIMIT_S) -> None:
        """Call it in the event loop of the role: when the loop stands still for `limit_s`, the process is not alive."""
        loop = asyncio.get_running_loop()

        def beat() -> None:
            self._beat_s = self._now_s()
            loop.call_later(BEAT_EVERY_S, beat)

        def look() -> str:
            silent_s = self._now_s() - self._beat_s
            return f"the event loop has not turned for {silent_s:.0f} s" if silent_s > limit_s else ""

        beat()
        self.check("event loop", look, "live")

    def live(self) -> Report:
        return Report("live", self._ask("live"))

    def startup(self) -> Report:
        begun = Seen("started", "" if self._is_started else f"{self.role} has not begun its work yet")
        return Report("startup", (begun, *self._ask("startup")))

    def ready(self) -> Report:
        """A process that has not started, or is stopping, is not ready, whatever its checks say."""
        stopping = Seen("taking work", f"{self.role} is stopping" if self._is_stopping else "")
        return Report("ready", (stopping, *self.startup().seen, *self._ask("ready"), *self._ask("note")))

    def report(self, probe: str) -> Report:
        return {"live": self.live, "startup": self.startup, "ready": self.ready}[probe]()

    def _ask(self, probe: Probe) -> tuple[Seen, ...]:
        return tuple(
            Seen(name, _said(look), probe == "note") for name, (look, of) in self._checks.items() if of == probe
        )


def _said(look: Look) -> str:
    try:
        return look()
    except CtxpipeError as error:
        return str(error)


def serve(port: int, health: Health, host: str = "127.0.0.1", pages: Mapping[str, Page] | None = None) -> int:
    """Serves /metrics, /livez, /readyz, /startupz and `pages` from threads of their own, so that a role that stands
    still is seen to; returns the port, chosen by the system where `port` is 0. Raises EnvironmentProblem when the port
    is taken."""
    try:
        server = _Server((host, port), partial(_Handler, health, {"/metrics": metrics.expose, **(pages or {})}))
    except OSError as error:
        reason = error.strerror or error
        raise EnvironmentProblem(
            f"can't serve metrics on {host} port {port}: {reason}. Choose another --metrics-port, or 0 for a free one."
        ) from error
    Thread(target=server.serve_forever, name="ctxpipe-health", daemon=True).start()
    return int(server.server_port)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Who asks goes away now and then; that is no traceback on our side."""
        _LOG.debug("an answer to %s failed", client_address, exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    timeout = CLIENT_TIMEOUT_S
    server_version, sys_version = "ctxpipe", ""

    def __init__(self, health: Health, pages: Mapping[str, Page], *arguments: Any) -> None:
        self._health, self._pages = health, pages
        super().__init__(*arguments)

    def do_GET(self) -> None:
        asked = urlsplit(self.path)
        probe = PATHS.get(asked.path)
        if probe is not None:
            report = self._health.report(probe)
            told = report.text() if not report.ok or "verbose" in parse_qs(asked.query, True) else "ok\n"
            self._answer(200 if report.ok else 503, told.encode(), TEXT)
        elif asked.path in self._pages:
            self._answer(200, *self._pages[asked.path]())
        else:
            known = ", ".join([*PATHS, *self._pages])
            self._answer(404, f"nothing is here; this server has {known}\n".encode(), TEXT)

    def do_HEAD(self) -> None:
        self.do_GET()

    def _answer(self, status: int, body: bytes, content_type: str) -> None:
        self.send_response(status)
        self.send_header("content-type", content_type)
        self.send_header("content-length", str(len(body)))
        self.send_header("cache-control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Probes come every few seconds."""
