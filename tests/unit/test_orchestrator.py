"""The example's orchestrator: what it makes of every status, and of a model that talks nonsense."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from deploy.demo.examples.decisions import BadDecision, EstimateDelay, prompt_of, read_decision
from deploy.demo.examples.models import EndpointModel, ModelFailed, RuleModel
from deploy.demo.examples.orchestrator import Orchestrator
from pipeline.client import Bundle, Unavailable
from pipeline.lookup.answer import Answer, NotReached, hash_of

FLIGHT = {"flight_id": 7, "dep_time": None, "dep_delay": None, "punctuality": {"average_delay": 12.4}}


def bundle(status: str, data: Any = FLIGHT, **more: Any) -> Bundle:
    body = None if data is None else json.dumps(data).encode()
    told: dict[str, Any] = {"as_of_us": {"nyc": 1}, "age_ms": {"nyc": 7_000.0}, "spec_version": 1, **more}
    return Bundle(
        Answer(
            context="flight", key="7", status=status, hash=None if body is None else hash_of(body), bundle=body, **told
        )
    )


class ScriptedClient:
    """Gives what comes next, and remembers how it was asked."""

    def __init__(self, *script: Bundle | Exception) -> None:
        self.script, self.asked = list(script), list[dict[str, Any]]()

    async def get(self, context: str, key: str, **options: Any) -> Bundle:
        self.asked.append(options)
        given = self.script.pop(0)
        if isinstance(given, Exception):
            raise given
        return given


class ScriptedModel:
    name = "scripted"

    def __init__(self, *script: str | Exception) -> None:
        self.script, self.prompts = list(script), list[str]()

    async def complete(self, prompt: str) -> str:
        self.prompts.append(prompt)
        given = self.script.pop(0)
        if isinstance(given, Exception):
            raise given
        return given


class Written:
    def __init__(self) -> None:
        self.writes: list[tuple[int, int]] = []

    async def estimate_delay(self, flight_id: int, minutes: int) -> str:
        self.writes.append((flight_id, minutes))
        return f"position{len(self.writes)}"


def made(client: ScriptedClient, model: Any = None) -> Orchestrator:
    return Orchestrator(client, model or RuleModel(), Written())  # type: ignore[arg-type]


async def test_an_action_is_confirmed_by_the_position_of_its_write() -> None:
    after = bundle("fresh", {"dep_delay": 12}, position={"nyc": "later"})
    client = ScriptedClient(bundle("fresh", id="abc"), after, bundle("fresh", {**FLIGHT, "dep_delay": 12}))
    orchestrator = made(client)
    line = await orchestrator.handle("7")
    assert (line["decision"], line["minutes"], line["confirmed"], line["id"]) == ("estimate_delay", 12, True, "abc")
    assert orchestrator.actions.writes == [(7, 12)]  # type: ignore[attr-defined]
    assert client.asked[0]["position"] is None and client.asked[1]["position"] == "position1"
    again = await orchestrator.handle("7")
    assert client.asked[2]["position"] == "position1", "the next decision sees the last one's write"
    assert (again["decision"], again["reason"]) == ("no_action", "the estimate stands")


@pytest.mark.parametrize("after", [bundle("stale", {"dep_delay": None}), Unavailable("away")])
async def test_what_was_not_seen_is_not_called_confirmed(after: Bundle | Exception) -> None:
    line = await made(ScriptedClient(bundle("fresh"), after)).handle("7")
    assert line["confirmed"] is False


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (bundle("missing", None), "no such flight"),
        (bundle("fallback", {"status": "unknown"}), "only the default"),
        (bundle("stale", not_reached=(NotReached("nyc", "p", "r"),)), "not in the context yet"),
        (Unavailable("nobody listens"), "no context: nobody listens"),
    ],
)
async def test_without_context_people_decide(given: Bundle | Exception, reason: str) -> None:
    model = ScriptedModel()
    line = await made(ScriptedClient(given), model).handle("7")
    assert line["decision"] == "ask_staff" and reason in line["reason"] and model.prompts == []


async def test_the_model_is_told_of_age_and_gaps() -> None:
    for status, told in (("stale", "its age is 7 s"), ("partial", "plane is not shown (late)"), ("fresh", None)):
        model = ScriptedModel('{"action":"no_action","reason":"fine"}')
        more = {"left_out": {"plane": "late"}} if status == "partial" else {}
        await made(ScriptedClient(bundle(status, **more)), model).handle("7")
        (prompt,) = model.prompts
        assert (told in prompt) if told is not None else "not shown" not in prompt and "out of date" not in prompt


NONSENSE = [
    "",
    "I would announce a delay.",
    "{",
    "null",
    "[" * 50_000,
    '{"action":"estimate_delay","minutes":5}',
    '{"action":"estimate_delay","minutes":"5","reason":"x"}',
    '{"action":"estimate_delay","minutes":-5,"reason":"x"}',
    '{"action":"estimate_delay","minutes":100000,"reason":"x"}',
    '{"action":"estimate_delay","minutes":5,"reason":""}',
    '{"action":"estimate_delay","minutes":5,"reason":"x","flight_id":8}',
    '{"action":"cancel_flight","reason":"x"}',
    '{"action":"no_action","reason":"\ud800',
]


@pytest.mark.parametrize("said", NONSENSE)
async def test_nonsense_does_nothing(said: str) -> None:
    with pytest.raises(BadDecision):
        read_decision(said)
    model = ScriptedModel(said, said)
    orchestrator = made(ScriptedClient(bundle("fresh")), model)
    line = await orchestrator.handle("7")
    assert line["decision"] == "ask_staff" and len(line["refused"]) == 2
    assert orchestrator.actions.writes == []  # type: ignore[attr-defined]
    assert "Your last answer was not taken: " in model.prompts[1]


async def test_a_model_may_come_to_its_senses() -> None:
    good = '```json\n{"action":"estimate_delay","minutes":5,"reason":"x"}\n```'
    assert read_decision(good) == EstimateDelay(5, "x")
    client = ScriptedClient(bundle("fresh"), bundle("fresh", {"dep_delay": 5}))
    line = await made(client, ScriptedModel("hm", good)).handle("7")
    assert line["confirmed"] is True and len(line["refused"]) == 1


async def test_the_stand_in_decides_by_rules() -> None:
    windy = {**FLIGHT, "punctuality": {"average_delay": None}, "weather": {"wind_speed": "26.5", "visib": 1}}
    for data, action, minutes in (
        (FLIGHT, "estimate_delay", 12),
        (windy, "estimate_delay", 35),
        ({**FLIGHT, "dep_time": 517}, "no_action", None),
        ({"flight_id": 1}, "no_action", None),
    ):
        said = json.loads(await RuleModel().complete(prompt_of(bundle("fresh", data))))
        assert (said["action"], said.get("minutes")) == (action, minutes)
    assert "no language model" in RuleModel.name


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b'{"choices":[{"message":{"content":"fine"}}]}', "fine"),
        (b'{"choices":[]}', None),
        (b"<html>", None),
        (b"[]", None),
    ],
)
async def test_any_endpoint_that_speaks_like_openai(answer: bytes, said: str | None) -> None:
    asked: list[bytes] = []

    async def tell(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        asked.append(head + await reader.readexactly(length))
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        writer.write(head % len(answer) + answer)
        writer.close()

    async with await asyncio.start_server(tell, "127.0.0.1", 0) as server:
        model = EndpointModel(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", "small", "secret")
        if said is None:
            with pytest.raises(ModelFailed):
                await model.complete("hello")
        else:
            assert await model.complete("hello") == said
        await model.close()
    assert asked[0].startswith(b"POST /v1/chat/completions") and b"Bearer secret" in asked[0] and b'"hello"' in asked[0]
    gone = EndpointModel("http://127.0.0.1:1/v1", "small")
    with pytest.raises(ModelFailed, match="does not answer"):
        await gone.complete("hello")
    line = await made(ScriptedClient(bundle("fresh")), gone).handle("7")
    assert line["decision"] == "ask_staff"
    await gone.close()
