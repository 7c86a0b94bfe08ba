"""Cases of a flow over HTTP, in any language: its program is started, asked case by case, and ended.

case → POST to the flow → (it asks our server for context, models, tools) → output → what was observed
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import msgspec
import uvicorn

from pipeline.core.errors import EnvironmentProblem
from pipeline.evaluation.digests import canonical, plain
from pipeline.evaluation.errors import SuiteError
from pipeline.evaluation.http_world import CaseServer, Offered, RealClock
from pipeline.evaluation.judging import result_of
from pipeline.evaluation.manifest import HttpFlow
from pipeline.evaluation.models.answers import Source
from pipeline.evaluation.models.guarding import answers_of
from pipeline.evaluation.python_flow import Seen, ToldTools, tools_of
from pipeline.evaluation.suite import Suite, prepare_imports
from pipeline.evaluation.values import Case, Observed, Step
from pipeline.evaluation.workers import Outcome, harness_told
from pipeline.evaluation.world import open_world
from pipeline.guard.errors import HarnessError

ANSWER_BYTES_MAX = 32 * 1024 * 1024
END_S = 5.0
"""Between SIGTERM and SIGKILL."""
_POLL_S = 0.05
_TOLD_CHARACTERS_MAX = 2000


def run_over_http(suite: Suite, cases: Sequence[Case], source: Source | None = None) -> Iterator[Outcome]:
    """One case after the other, as they come. The program is ended whatever happens. Raises SuiteError where it does
    not start, EnvironmentProblem where no server of ours can listen."""
    prepare_imports(suite.folder, suite.flow)
    with asyncio.Runner() as runner:
        harness = _Harness(suite, source)
        try:
            runner.run(harness.open())
            for case in cases:
                yield runner.run(harness.outcome(case))
        finally:
            runner.run(harness.close())


class _Harness:
    """The server that the flow asks, the program of the flow, and the client that asks it."""

    def __init__(self, suite: Suite, source: Source | None) -> None:
        assert suite.flow is not None and suite.flow.http is not None, "a suite with a flow over http"
        self._suite, self._source, self._flow = suite, source, suite.flow.http
        self._server, self._stack = CaseServer(), AsyncExitStack()
        self._program = _Program(self._flow, str(suite.folder))
        self._address = ""

    async def open(self) -> None:
        self._address = await self._stack.enter_async_context(_listening(self._server))
        self._client = await self._stack.enter_async_context(
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=self._flow.timeout_s), trust_env=False)
        )
        await self._program.start()

    async def close(self) -> None:
        self._program.end()
        await self._stack.aclose()

    async def outcome(self, case: Case) -> Outcome:
        seen = Seen()
        try:
            await self._run(case, seen)
        except HarnessError as error:
            seen.harness.append(str(error))
        if seen.harness:
            return Outcome(case.id, None, harness_told(case, "\n".join(dict.fromkeys(seen.harness))))
        return Outcome(case.id, result_of(self._suite, case, _observed(seen), real_time=True))

    async def _run(self, case: Case, seen: Seen) -> None:
        clock = RealClock(self._suite.manifest.now_us)
        await self._program.again_if_ended()
        async with open_world(self._suite, case, clock, seen.steps.append) as world:
            answers = None if self._suite.guard is None else answers_of(self._suite, case, self._source)
            tools = ToldTools(tools_of(self._suite, case), clock, seen)
            path = self._server.offer(Offered(world, answers, self._suite.guard, tools, clock, seen))
            began_s = clock.monotonic_s()
            try:
                await self._ask(case, f"{self._address}{path}", seen)
            finally:
                self._server.close()
                seen.took_ms = round((clock.monotonic_s() - began_s) * 1000, 3)
                seen.seen = dict(world.seen)
                seen.harness += answers.harness if answers is not None else []

    async def _ask(self, case: Case, address: str, seen: Seen) -> None:
        try:
            async with self._client.post(self._flow.url, json=self._asked(case, address)) as answer:
                body = await _limited(answer.content)
                seen.raised = _take(answer.status, body, seen)
        except TimeoutError:
            seen.raised = f"the flow did not answer within {self._flow.timeout_s:g} s"
        except (aiohttp.ClientError, OSError) as error:
            ended = await self._program.ended()
            seen.raised = ended or f"the flow's connection broke: {type(error).__name__}"

    def _asked(self, case: Case, address: str) -> dict[str, Any]:
        guard = self._suite.guard
        models = {one.name: f"{address}/model/{one.name}/v1" for one in guard.endpoints} if guard is not None else {}
        asked: dict[str, Any] = {
            "case": case.id,
            "input": case.input,
            "context_url": f"{address}/context",
            "model_urls": models,
            "deadline_ms": round(self._flow.timeout_s * 1000),
        }
        if guard is not None:
            asked["model_url"] = models[next(iter(guard.routes.values())).primary]
        if self._suite.flow is not None and self._suite.flow.tools is not None:
            asked["tools_url"] = f"{address}/tools"
        return asked


class _Program:
    """The flow's own process, where the suite names a command for it."""

    def __init__(self, flow: HttpFlow, folder: str) -> None:
        self._flow, self._folder = flow, folder
        self._process: subprocess.Popen[bytes] | None = None
        self._log = tempfile.TemporaryFile() if flow.command else None  # noqa: SIM115 - `end` closes it
        parts = urlsplit(flow.url)
        self._host, self._port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)

    async def start(self) -> None:
        """Raises SuiteError where it can't be started or does not listen in time."""
        if not self._flow.command:
            await self._wait("nothing listens there; start the flow, or name its command in suite.yaml")
            return
        if await self._listens():
            raise SuiteError([f"something listens at {self._flow.url} already; end it, or leave out flow.http.command"])
        self._spawn()
        await self._wait("the command was started and does not listen there")

    def _spawn(self) -> None:
        try:
            self._process = subprocess.Popen(
                self._flow.command,
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                start_new_session=True,
            )
        except OSError as error:
            name = self._flow.command[0]
            raise SuiteError([f"flow.http.command: {name} can't be started: {error.strerror}"]) from None

    async def again_if_ended(self) -> None:
        """A flow that took its process down is a failed case; the next one has a new process."""
        if self._process is not None and self._process.poll() is not None:
            await self.start()

    async def ended(self) -> str:
        """How its process ended, "" where it lives."""
        if self._process is None:
            return ""
        for _ in range(10):
            if self._process.poll() is not None:
                return f"the flow's process ended (exit code {self._process.returncode}){self._told()}"
            await asyncio.sleep(_POLL_S)
        return ""

    def end(self) -> None:
        """It and all that it started."""
        if self._process is not None:
            _signal_group(self._process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(END_S)
            _signal_group(self._process.pid, signal.SIGKILL)
            self._process.wait()
        if self._log is not None:
            self._log.close()

    async def _wait(self, told: str) -> None:
        loop = asyncio.get_running_loop()
        until_s = loop.time() + (self._flow.ready_s if self._flow.command else _POLL_S)
        while not await self._listens():
            if self._process is not None and self._process.poll() is not None:
                code = self._process.returncode
                raise SuiteError([f"the flow's command ended before it listened (exit code {code}){self._told()}"])
            if loop.time() >= until_s:
                raise SuiteError([f"{self._flow.url}: {told}{self._told()}"])
            await asyncio.sleep(_POLL_S)

    async def _listens(self) -> bool:
        try:
            _, writer = await asyncio.open_connection(self._host, self._port)
        except OSError:
            return False
        writer.close()
        return True

    def _told(self) -> str:
        """The end of what it wrote."""
        if self._log is None:
            return ""
        self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, self._log.tell() - _TOLD_CHARACTERS_MAX))
        text = self._log.read().decode(errors="replace").strip()
        return f"; its last words:\n{text}" if text else ""


@asynccontextmanager
async def _listening(app: CaseServer) -> AsyncIterator[str]:
    """Our server on a free port of this machine alone."""
    try:
        listener = socket.create_server(("127.0.0.1", 0))
    except OSError as error:
        raise EnvironmentProblem(f"no server can listen on 127.0.0.1: {error.strerror}") from None
    settings = uvicorn.Config(app, log_config=None, log_level="critical", access_log=False, lifespan="off", ws="none")
    server = uvicorn.Server(settings)
    settings.load()
    server.lifespan = settings.lifespan_class(settings)
    await server.startup(sockets=[listener])
    running = asyncio.create_task(server.main_loop())
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = server.force_exit = True
        await running
        await server.shutdown(sockets=[listener])


async def _limited(content: aiohttp.StreamReader) -> bytes:
    """All of it, or a little more than is taken."""
    body = bytearray()
    async for chunk in content.iter_chunked(1 << 16):
        body += chunk
        if len(body) > ANSWER_BYTES_MAX:
            break
    return bytes(body)


def _take(status: int, body: bytes, seen: Seen) -> str:
    """The flow's answer into `seen`; what is wrong with it, "" for nothing."""
    if status != 200:
        return f"the flow answered {status}: {body[:300].decode(errors='replace')}"
    if len(body) > ANSWER_BYTES_MAX:
        return f"the flow's answer has more than {ANSWER_BYTES_MAX} bytes"
    try:
        answer = msgspec.json.decode(body)
        canonical(answer)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError) as error:
        return f"the flow's answer is no JSON: {error}"
    if not isinstance(answer, dict) or "output" not in answer:
        return 'the flow\'s answer has to be {"output": …}, and "steps" where it has tools of its own'
    steps = answer.get("steps", [])
    if not isinstance(steps, list) or not all(
        isinstance(one, dict) and isinstance(one.get("name"), str) for one in steps
    ):
        return 'steps have to be objects such as {"name": "refund", "asked": {…}, "came": {…}}'
    seen.output = plain(answer["output"])
    seen.steps += [
        Step(what="tool", name=one["name"], asked=_object(one.get("asked")), came=_object(one.get("came")))
        for one in steps
    ]
    return ""


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {} if value is None else {"value": value}


def _observed(seen: Seen) -> Observed:
    """What models cost is the flow's own affair: here it is not known."""
    return Observed(
        output=seen.output,
        raised=seen.raised,
        steps=tuple(seen.steps),
        seen=seen.seen,
        took_ms=seen.took_ms,
        cost=None,
    )


def _signal_group(process_id: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process_id, number)
