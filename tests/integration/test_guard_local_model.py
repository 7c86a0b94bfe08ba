"""The local rung with a real quantised model: llama.cpp's server, grammar-constrained, when nobody else answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

from deploy.local import model_server
from deploy.local.processes import choose_port
from pipeline.guard.config import Endpoint, GuardConfig, Route
from pipeline.guard.escalations import MemoryEscalations
from pipeline.guard.faults import FaultServer
from pipeline.guard.guard import Guard
from pipeline.guard.http_client import HttpClient
from pipeline.guard.output import of_model
from pipeline.guard.values import ModelRequest

pytestmark = [
    pytest.mark.servers,
    pytest.mark.skipif(
        not model_server.installed(), reason="build it once with python -m deploy.local.model_server (some minutes)"
    ),
]


class Decision(BaseModel):
    """What the tiny model is asked for; its words mean nothing, its form has to hold."""

    model_config = ConfigDict(extra="forbid")
    action: Literal["rebook", "wait", "refund"]
    urgent: bool


class Bounded(BaseModel):
    """What this server's grammar lets through: it knows no bounds of numbers."""

    minutes: int = Field(ge=10**14, le=10**14)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[model_server.ModelServer]:
    made = model_server.ModelServer(tmp_path_factory.mktemp("llm"), choose_port())
    made.start()
    yield made
    made.kill()


@pytest.fixture
async def faults() -> AsyncIterator[FaultServer]:
    async with FaultServer() as made:
        yield made


def request(task: str = "t") -> ModelRequest:
    messages = [{"role": "user", "content": "Flight UA1545 is 90 minutes late. What now?"}]
    return ModelRequest(
        task=task,
        messages=messages,
        output=of_model(Decision),
        output_tokens_max=256,
        deadline_s=60,
        parameters={"temperature": 0},
    )


def guard(client: HttpClient, primary: str, server: model_server.ModelServer, constraint: str) -> Guard:
    local = Endpoint(
        name="here", url=server.address, model="tiny", constraint=constraint, price="local-cpu", timeout_s=50
    )
    config = GuardConfig(
        endpoints=(Endpoint(name="large", url=primary, model="gpt-4o", timeout_s=0.5), local),
        routes={"*": Route(primary="large", local=("here",), repair_turn=False, retry_delay_s=0.01)},
    )
    return Guard(config, client, MemoryEscalations(), {"t": lambda _: {"action": "wait", "urgent": False}})


@pytest.mark.parametrize("fault", ["reset", "hang", "rate_limited", "prose", "html"])
async def test_the_local_model_answers_when_the_primary_does_not(
    server: model_server.ModelServer, faults: FaultServer, fault: str
) -> None:
    async with HttpClient() as client:
        result = await guard(client, faults.url(fault), server, "json_object_schema").call(request())
    assert (result.rung, result.endpoint, result.model) == ("local", "here", "tiny"), result.attempts
    assert isinstance(result.output, Decision)
    assert result.tokens.output is not None and result.tokens.output > 0
    local = result.attempts[-1]
    assert local.cost is not None and local.cost > 0, "priced by the second that it worked"
    print(f"{fault}: {result.output!r} in {local.took_s * 1000:.0f} ms, {local.cost:.8f} USD")


async def test_several_at_once(server: model_server.ModelServer, faults: FaultServer) -> None:
    async with HttpClient() as client:
        asked = guard(client, faults.url("error_503"), server, "json_object_schema")
        results = await asyncio.gather(*(asked.call(request()) for _ in range(8)))
    assert {result.rung for result in results} == {"local"}


async def test_without_its_grammar_it_talks_nonsense_which_nobody_takes_for_an_answer(
    server: model_server.ModelServer, faults: FaultServer
) -> None:
    async with HttpClient() as client:
        asked = guard(client, faults.url("reset"), server, "none")
        result = await asked.call(request())
        assert (result.rung, result.reason) == ("deterministic", "reset")
        assert result.attempts[-2].reason == "invalid_output"
        assert (await asked.call(request("unknown"))).rung == "escalated"


async def test_what_its_grammar_lets_through_is_checked(server: model_server.ModelServer, faults: FaultServer) -> None:
    async with HttpClient() as client:
        bounded = replace(request("unknown"), output=of_model(Bounded))
        result = await guard(client, faults.url("reset"), server, "json_object_schema").call(bounded)
    assert (result.rung, result.attempts[-1].invalid) == ("escalated", "schema")
    assert "minutes" in result.attempts[-1].detail


async def test_when_it_dies_the_function_answers(server: model_server.ModelServer, faults: FaultServer) -> None:
    server.pause()
    try:
        async with HttpClient() as client:
            asked = guard(client, faults.url("reset"), server, "json_object_schema")
            short = ModelRequest(task="t", messages=request().messages, output=of_model(Decision), deadline_s=2)
            result = await asked.call(short)
        assert (result.rung, result.attempts[-2].reason) == ("deterministic", "timeout")
    finally:
        server.resume()
