"""The model behind an orchestrator: a small protocol, a stand-in without a network, and any OpenAI-like endpoint."""

from __future__ import annotations

import json
from typing import Any, Protocol

from pydantic import SecretStr

from pipeline.guard.config import Endpoint, GuardConfig, Route
from pipeline.guard.escalations import MemoryEscalations
from pipeline.guard.guard import Guard
from pipeline.guard.http_client import HttpClient
from pipeline.guard.values import ModelRequest

TASK = "gate"
CONTEXT_BEGINS, CONTEXT_ENDS = "<context>", "</context>"
LATE_MINUTES_MIN = 10
WIND_MPH_MAX, VISIBILITY_MILES_MIN = 25, 3


class ModelFailed(Exception):
    """No answer; the text says why."""


class Model(Protocol):
    """`name` goes into the log beside every decision."""

    name: str

    async def complete(self, prompt: str) -> str:
        """What the model says, which may be anything. Raises ModelFailed."""


class RuleModel:
    """Not a language model: a few rules that read the context out of the prompt, so that the example runs anywhere and
    decides the same every time."""

    name = "stand-in of rules, no language model"

    async def complete(self, prompt: str) -> str:
        context = json.loads(prompt.split(CONTEXT_BEGINS, 1)[1].split(CONTEXT_ENDS, 1)[0])
        if context.get("dep_time") is not None:
            return _said("no_action", reason="it has left")
        expected = round(float((context.get("punctuality") or {}).get("average_delay") or 0))
        weather = context.get("weather") or {}
        wind, visibility = weather.get("wind_speed"), weather.get("visib")
        if wind is not None and float(wind) > WIND_MPH_MAX:
            expected += 20
        if visibility is not None and float(visibility) < VISIBILITY_MILES_MIN:
            expected += 15
        if expected < LATE_MINUTES_MIN:
            return _said("no_action", reason=f"{expected} minutes are nothing to tell of")
        if context.get("dep_delay") == expected:
            return _said("no_action", reason="the estimate stands")
        return _said("estimate_delay", minutes=min(expected, 600), reason="as punctual as its carrier is here of late")


class EndpointModel:
    """Any endpoint that speaks OpenAI's /chat/completions, through the guard; `url` goes up to /v1."""

    def __init__(self, url: str, name: str, api_key: str | None = None, timeout_s: float = 30.0) -> None:
        self.name, self._timeout_s = name, timeout_s
        key = None if api_key is None else SecretStr(api_key)
        endpoint = Endpoint(name="model", url=url, model=name, api_key=key, timeout_s=timeout_s)
        config = GuardConfig(endpoints=(endpoint,), routes={TASK: Route(primary=endpoint.name, deterministic=False)})
        self._client = HttpClient()
        # The orchestrator has its own people to ask: what no model answers is kept here for nobody.
        self._guard = Guard(config, self._client, MemoryEscalations(records_max=1))

    async def complete(self, prompt: str) -> str:
        messages = [{"role": "user", "content": prompt}]
        request = ModelRequest(task=TASK, messages=messages, parameters={"temperature": 0}, deadline_s=self._timeout_s)
        result = await self._guard.call(request)
        if not result.answered:
            why = next((one.detail for one in reversed(result.attempts) if one.detail), result.reason)
            raise ModelFailed(f"the model's endpoint does not answer: {why}")
        return str(result.output)

    async def close(self) -> None:
        await self._guard.close()
        await self._client.close()


def _said(action: str, **more: Any) -> str:
    return json.dumps({"action": action, **more})
