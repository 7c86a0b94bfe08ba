"""`/livez`, `/startupz` and `/readyz` of the servers that answer lookups: routes of `serve`, and in front of `mcp`.

A store that is away unreadies nobody who can still answer: all servers share it, and where all stand aside, callers get
nothing instead of what was last known. Only a server that has no answer at all for any context steps back.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sized
from http import HTTPStatus

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from pipeline.core.errors import CtxpipeError
from pipeline.core.health import PATHS, TEXT, Health, Report, Seen
from pipeline.lookup.served import ServedContext
from pipeline.lookup.service import LookupService

REPLICA_S = 0.5

_LOG = logging.getLogger("ctxpipe.lookup")


class Probes:
    """Of one server. `guarded`: who asks has shown nothing, so contexts are not named and reasons stay in the log.
    Without `health` it has begun, and has nothing else to tell."""

    def __init__(self, health: Health | None, service: LookupService, guarded: bool) -> None:
        if health is None:
            health = Health("serve")
            health.started()
        self._health, self._service, self._guarded = health, service, guarded
        self._told: dict[str, str] = {}

    def routes(self) -> list[Route]:
        return [Route(path, self.answer, methods=["GET"]) for path in PATHS]

    async def answer(self, request: Request) -> Response:
        """Any of the three, by the request's path."""
        probe = PATHS[request.url.path]
        report = await self.ready() if probe == "ready" else self._health.report(probe)
        self._tell(report)
        if self._guarded:
            report = _without_reasons(report)
        if "verbose" in request.query_params:
            headers = {"cache-control": "no-store"}
            return Response(report.text(), 200 if report.ok else 503, headers, TEXT)
        return _short(report, self._guarded)

    async def ready(self) -> Report:
        """With what the stores of the contexts say, and what else could answer."""
        report = self._health.ready()
        problems = await self._service.ready()
        contexts: list[Seen] = []
        for served in self._service.versions:
            name = served.spec.context
            if name in problems:
                instead = await fallback_of(served)
                said = f"{problems[name]}; answers come from {instead}" if instead else problems[name]
                contexts.append(Seen(name, said, bool(instead)))
            else:
                contexts.append(Seen(name, ""))
        if any(seen.note or not seen.problem for seen in contexts):
            # Some can be answered: those that can't are told to who asks for them.
            contexts = [Seen(seen.name, seen.problem, True) for seen in contexts]
        return Report(report.probe, (*report.seen, *contexts))

    def _tell(self, report: Report) -> None:
        """In the log, when it changes: probes come every few seconds."""
        seen = {one.name: one.problem for one in report.seen if one.problem} if report.probe == "ready" else self._told
        if seen != self._told:
            if seen:
                text = "; ".join(f"{name}: {problem}" for name, problem in seen.items())
                _LOG.warning("%s: %s", "ready, but" if report.ok else "not ready", text)
            else:
                _LOG.info("ready again")
            self._told = seen


class ProbedApplication:
    """In front of an application that knows nothing of probes; nobody needs a credential for them."""

    def __init__(self, application: ASGIApp, probes: Probes) -> None:
        self._application, self._probes = application, probes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] in PATHS:
            response = await self._probes.answer(Request(scope, receive))
            await response(scope, receive, send)
        else:
            await self._application(scope, receive, send)


async def fallback_of(served: ServedContext) -> str:
    """What answers lookups of a context while its store does not, in words; empty for nothing."""
    rungs = served.rungs
    if rungs.replica_applied is not None:
        try:
            async with asyncio.timeout(REPLICA_S):
                await rungs.replica_applied.read_applied()
        except (TimeoutError, CtxpipeError):
            pass  # the next rung
        else:
            return "the replica"
    if isinstance(rungs.last_known, Sized) and len(rungs.last_known):
        return "what was last known"
    return "" if served.spec.serving.default is None else "the default bundle"


def _without_reasons(report: Report) -> Report:
    return Report(report.probe, (Seen("all", "" if report.ok else "see the server's log"),))


def _short(report: Report, guarded: bool) -> Response:
    if report.ok:
        return Response(b'{"status":"ok"}', 200, {"cache-control": "no-store"}, "application/json")
    names = "" if guarded else f": {', '.join(report.problems)}"
    word = {"live": "alive", "startup": "started"}.get(report.probe, report.probe)
    body = {
        "type": "about:blank",
        "title": HTTPStatus(503).phrase,
        "status": 503,
        "detail": f"not {word}{names}; see the server's log",
    }
    headers = {"cache-control": "no-store", "retry-after": "1"}
    return Response(msgspec.json.encode(body), 503, headers, "application/problem+json")
