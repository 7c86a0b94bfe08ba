"""The model behind an orchestrator: a small protocol, a stand-in without a network, and any OpenAI-like endpoint."""

from __future__ import annotations

import json
from typing import Any, Protocol

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
    """Any endpoint that speaks OpenAI's /chat/completions; `url` goes up to /v1."""

    def __init__(self, url: str, name: str, api_key: str | None = None, timeout_s: float = 30.0) -> None:
        import httpx

        self.name, self._errors = name, httpx.HTTPError
        headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
        self._client = httpx.AsyncClient(base_url=url.rstrip("/"), headers=headers, timeout=timeout_s)

    async def complete(self, prompt: str) -> str:
        body = {"model": self.name, "temperature": 0, "messages": [{"role": "user", "content": prompt}]}
        try:
            response = await self._client.post("/chat/completions", json=body)
            response.raise_for_status()
            said: Any = response.json()["choices"][0]["message"]["content"]
        except self._errors as error:
            raise ModelFailed(f"the model's endpoint does not answer: {error or type(error).__name__}") from error
        except (ValueError, LookupError, TypeError) as error:
            raise ModelFailed(f"the endpoint answers in another form than /chat/completions: {error}") from error
        return said if isinstance(said, str) else json.dumps(said)

    async def close(self) -> None:
        await self._client.aclose()


def _said(action: str, **more: Any) -> str:
    return json.dumps({"action": action, **more})
