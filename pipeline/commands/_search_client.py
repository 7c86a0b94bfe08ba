"""Asks a running `ctxpipe serve`, over plain HTTP."""

from __future__ import annotations

import http.client
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlsplit
from urllib.request import ProxyHandler, Request, build_opener

import msgspec

from pipeline.client.credential import API_KEY, credential_headers
from pipeline.core.errors import ConfigError, EnvironmentProblem
from pipeline.lookup.search_request import SearchRequest

CONNECT_TIMEOUT_S = 2.0
ANSWER_TIMEOUT_S = 30.0


def ask_server(url: str, context: str, request: SearchRequest, must_answer: bool) -> bytes | None:
    """The answer's JSON; None where no `serve` that knows this context listens, unless it `must_answer`.

    Raises ConfigError for a question that it refuses, EnvironmentProblem where it cannot answer.
    """
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        raise ConfigError([f"--url {url!r} is no address; write http://host:port"])
    try:
        listed = _ask(f"{url.rstrip('/')}/v1/contexts", None, CONNECT_TIMEOUT_S)
        known = [item["context"] for item in msgspec.json.decode(listed)["contexts"]]
    except (OSError, http.client.HTTPException, msgspec.DecodeError, KeyError, TypeError) as error:
        if must_answer and isinstance(error, HTTPError) and error.code in (401, 403):
            raise ConfigError([f"{url} wants a credential: put a key that it knows into {API_KEY}"]) from None
        if must_answer:
            raise EnvironmentProblem(
                f"{url} does not answer as `ctxpipe serve` does ({_reason(error)}). Start it, or leave --url out"
            ) from error
        return None
    if context not in known:
        if must_answer:
            raise ConfigError([f"{url} serves no context {context!r}; it has {', '.join(known) or 'none'}"])
        return None
    try:
        place = f"{url.rstrip('/')}/v1/contexts/{quote(context, safe='')}:search"
        return _ask(place, msgspec.json.encode(body_of(request)), ANSWER_TIMEOUT_S)
    except HTTPError as error:
        raise _refusal(url, error) from None
    except (OSError, http.client.HTTPException) as error:
        raise EnvironmentProblem(f"{url} did not answer the search: {_reason(error)}") from error


def body_of(request: SearchRequest) -> dict[str, Any]:
    """As the HTTP interface takes it; see lookup.search_request.read_request."""
    narrow: dict[str, dict[str, Any]] = {}
    for condition in request.conditions:
        narrow.setdefault(condition.field, {})[condition.comparison] = condition.value
    body = {
        "text": request.text,
        "vector": request.vector,
        "key": request.key,
        "k": request.k,
        "filter": narrow,
        "min_score": request.min_score,
        "mode": request.mode,
        "space": request.space,
        "budget_ms": request.budget_ms,
        "position": list(request.position) or None,
    }
    return {name: value for name, value in body.items() if value is not None}


def _ask(url: str, body: bytes | None, timeout_s: float) -> bytes:
    request = Request(url, body, {"content-type": "application/json", **credential_headers()})
    # Without proxies of the environment: the server is a neighbour.
    with build_opener(ProxyHandler({})).open(request, timeout=timeout_s) as response:
        answer: bytes = response.read()
        return answer


def _refusal(url: str, error: HTTPError) -> ConfigError | EnvironmentProblem:
    try:
        problem = msgspec.json.decode(error.read())
        mistakes = problem.get("mistakes") or [problem["detail"]]
    except (msgspec.DecodeError, KeyError, TypeError, AttributeError, OSError, http.client.HTTPException):
        mistakes = [f"it answered {error.code}"]
    if error.code < 500:
        return ConfigError([str(mistake) for mistake in mistakes])
    return EnvironmentProblem(f"{url} cannot answer: {'; '.join(map(str, mistakes))}")


def _reason(error: Exception) -> str:
    inner = error.reason if isinstance(error, URLError) and not isinstance(error, HTTPError) else error
    return getattr(inner, "strerror", None) or str(inner) or type(inner).__name__
