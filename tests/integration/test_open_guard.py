"""`open_guard`: an application's model calls as ctxpipe.yaml says, with real HTTP and a real Kafka behind it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from deploy.local.processes import choose_port
from pipeline.client.guarding import open_guard
from pipeline.core.config import Config, load
from pipeline.core.errors import ConfigError
from pipeline.guard.faults import FaultServer
from pipeline.guard.output import of_schema
from pipeline.guard.values import ModelRequest
from pipeline.streams.escalation_desk import EscalationDesk
from tests.support.cli import ctxpipe
from tests.support.eventually import eventually
from tests.support.streams import new_name

pytestmark = pytest.mark.servers

OUTPUT = of_schema("answer", {"type": "object", "properties": {"answer": {"type": "integer"}}, "required": ["answer"]})


@pytest.fixture
async def faults() -> AsyncIterator[FaultServer]:
    async with FaultServer() as made:
        yield made


def write(folder: Path, bootstrap: str, topic: str, url: str, more: str = "", hook: str = "") -> Path:
    path = folder / "ctxpipe.yaml"
    path.write_text(
        f"kafka: {{bootstrap_servers: '{bootstrap}'}}\n"
        "redis: {url: 'redis://127.0.0.1:6379/0'}\n"
        "guard:\n"
        f"  endpoints: [{{name: large, url: '{url}', model: gpt-4o, api_key: sk-of-the-endpoint}}]\n"
        "  routes: {'*': {primary: large, retries_max: 0}}\n"
        f"  escalations: {{topic: {topic}, put_timeout_s: 20{hook}}}\n{more}"
    )
    return path


def request(task: str = "t") -> ModelRequest:
    messages = [{"role": "user", "content": "how many? sk-of-the-endpoint"}]
    return ModelRequest(task=task, messages=messages, output=OUTPUT, deadline_s=25.0)


async def answer(config: Config, value: Any) -> None:
    assert config.guard is not None
    async with EscalationDesk(config.kafka.bootstrap_servers, config.guard.escalations) as desk:
        (standing,) = [one for one in (await desk.look()).questions if one.open]
        whole = await desk.whole(standing)
        assert whole is not None and "sk-of-the-endpoint" not in json.dumps(whole.question.messages)
        await desk.answer(whole.question, value, "ann")


async def test_a_model_a_function_and_a_person_answer(
    kafka_bootstrap: str, faults: FaultServer, tmp_path: Path
) -> None:
    path = write(tmp_path, kafka_bootstrap, new_name("asked"), faults.url("valid,reset,reset"))
    async with open_guard(path, {"t": lambda asked: {"answer": 0}}) as guard:
        first = await guard.call(request())
        assert (first.rung, first.output) == ("primary", {"answer": 42})
        assert await guard.answer(first, 0) is None, "nobody was asked"
        assert (await guard.call(request())).rung == "deterministic"
        third = await guard.call(request("without a function"))
        assert (third.rung, third.escalation) == ("escalated", "recorded")
        waiting = asyncio.create_task(guard.answer(third, 60))
        await answer(load(path), {"answer": 7})
        told = await waiting
        assert told is not None and OUTPUT.check_value(told.value) == {"answer": 7}


async def test_the_webhook_is_served_by_whoever_opens_the_guard(
    kafka_bootstrap: str, faults: FaultServer, tmp_path: Path
) -> None:
    taken: list[str] = []

    async def hook(asked: web.Request) -> web.Response:
        taken.append((await asked.json())["id"])
        return web.Response()

    application, port = web.Application(), choose_port()
    application.router.add_post("/hook", hook)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        section = f", webhook: {{url: 'http://127.0.0.1:{port}/hook', secret: sixteen characters}}"
        path = write(tmp_path, kafka_bootstrap, new_name("asked"), faults.url("reset"), hook=section)
        async with open_guard(path) as guard:
            result = await guard.call(request())
            await eventually(lambda: taken == [result.escalation_id], timeout_s=60)
    finally:
        await runner.cleanup()


async def test_without_kafka_it_opens_and_says_what_failed(faults: FaultServer, tmp_path: Path) -> None:
    path = write(tmp_path, f"127.0.0.1:{choose_port()}", "asked", faults.url("valid,reset"))
    path.write_text(path.read_text().replace("put_timeout_s: 20", "put_timeout_s: 1"))
    async with open_guard(path) as guard:
        assert (await guard.call(request())).rung == "primary"
        failed = await guard.call(request())
        assert (failed.rung, failed.escalation) == ("escalated", "failed")
        assert await guard.answer(failed) is None


async def test_a_routing_file_counts(kafka_bootstrap: str, faults: FaultServer, tmp_path: Path) -> None:
    path = write(tmp_path, kafka_bootstrap, new_name("asked"), faults.url("reset"), "  routing: routing.yaml\n")
    small = f"    - {{name: small, url: '{faults.url('valid')}', model: gpt-4o-mini}}\n"
    text = path.read_text().replace("  endpoints: [", "  endpoints:\n    - ").replace("}]\n", "}\n" + small, 1)
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"routing\.yaml"):
        async with open_guard(path):
            pass
    (tmp_path / "routing.yaml").write_text("version: 1\ntasks:\n  t: {active: small, override_reason: the first one}\n")
    async with open_guard(path) as guard:
        assert (await guard.call(request())).endpoint == "small"
        assert (await guard.call(request("other"))).rung == "escalated", "by the guard's own routes"
    assert (tmp_path / ".ctxpipe" / "routing-state.json").exists()


async def test_without_the_section_it_says_so(tmp_path: Path) -> None:
    path = write(tmp_path, "127.0.0.1:1", "asked", "http://h/v1")
    path.write_text(path.read_text().partition("guard:")[0])
    with pytest.raises(ConfigError, match="'guard' is missing"):
        async with open_guard(path):
            pass


async def test_check_asks_endpoints_for_their_models_and_nothing_else(kafka_bootstrap: str, tmp_path: Path) -> None:
    asked: list[tuple[str, str, str]] = []

    async def answers(got: web.Request) -> web.Response:
        asked.append((got.method, got.path, got.headers.get("authorization", "")))
        return web.json_response({"data": [{"id": "gpt-4o"}]})

    application, port = web.Application(), choose_port()
    application.router.add_route("*", "/{rest:.*}", answers)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        path = write(
            tmp_path, kafka_bootstrap, new_name("asked"), f"http://127.0.0.1:{port}/v1", "  prices: none.toml\n"
        )
        done = await asyncio.to_thread(ctxpipe, "check", "--json", folder=path.parent)
        found = {one["subject"]: one for one in done.lines()[0]["findings"]}
        assert found["guard: endpoint large"]["severity"] == "ok", found
        assert found["guard: prices"]["severity"] == "unfit"
        assert asked == [("GET", "/v1/models", "Bearer sk-of-the-endpoint")]
    finally:
        await runner.cleanup()
    away = await asyncio.to_thread(ctxpipe, "check", "--json", folder=path.parent)
    found = {one["subject"]: one for one in away.lines()[0]["findings"]}
    assert away.code == 3 and found["guard: endpoint large"]["severity"] == "unreachable"
