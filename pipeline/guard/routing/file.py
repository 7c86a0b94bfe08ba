"""From routing.yaml to what it says, or to everything that is wrong with it, by file and line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from pipeline.core.config import ServeConfig, filled
from pipeline.core.errors import ConfigError
from pipeline.guard.config import GuardConfig
from pipeline.guard.routing.config import RoutingConfig, TaskRouting
from schemas.context_schema import DIALECT
from schemas.errors import SpecError
from schemas.yaml_file import Document, Location, Mistake, mistakes_of, read_yaml, suggestion

_NOWHERE = "http://127.0.0.1:1/v1"
Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True)
class RoutingFile:
    """A file without mistakes, and where in it everything stands."""

    config: RoutingConfig
    document: Document

    @property
    def path(self) -> Path:
        return self.document.path

    def place(self, task: str, *more: str) -> str:
        """`file:line` of a part of a task."""
        return self.document.place(("tasks", task, *more))


def read_routing(path: Path, guard: GuardConfig | None = None) -> RoutingFile:
    """Raises ConfigError with all mistakes, each `file:line: where: what is wrong; how to mend it`. Without `guard` the
    names of endpoints are not looked at."""
    document = _read(path)
    mistakes: list[Mistake] = []
    config = _valid(document, RoutingConfig, mistakes)
    for name, task in _sound_tasks(document) if config is None else config.tasks.items():
        mistakes += _mistakes(name, task, guard)
    if config is None or mistakes:
        raise ConfigError(document.sentences(mistakes))
    return RoutingFile(config, document)


@dataclass(frozen=True)
class GuardFile:
    """What a routing file is about, without keys and addresses. The paths are those of a configuration, None of a file
    that holds a guard alone."""

    config: GuardConfig
    routing: Path | None = None
    prices: Path | None = None
    data_directory: Path | None = None


def read_guard(path: Path) -> GuardFile:
    """Endpoints and routes of a file that holds them, or of a configuration (`guard:`). Keys and addresses are not
    read, so that whoever checks a routing file needs none. Raises ConfigError with all mistakes."""
    document = _read(path)
    mistakes: list[Mistake] = []
    inner = document.data.get("guard") if isinstance(document.data, dict) else None
    at: Location = () if inner is None else ("guard",)
    given = document.data if inner is None else inner
    data = filled(_without_access(given), at, mistakes)
    if inner is not None and isinstance(data, dict):
        data = {name: value for name, value in data.items() if name in GuardConfig.model_fields}
    config = _valid(document, GuardConfig, mistakes, data, at)
    if config is None or mistakes:
        raise ConfigError(document.sentences(mistakes))
    if inner is None:
        return GuardFile(config)
    serve = document.data.get("serve")
    directory = serve.get("data_directory") if isinstance(serve, dict) else None
    return GuardFile(
        config,
        _beside(path, inner.get("routing")),
        _beside(path, inner.get("prices")),
        _beside(path, directory or ServeConfig().data_directory),
    )


def routing_json_schema() -> dict[str, Any]:
    """What a routing file may be as to shape; that endpoints exist and evidence holds only reading it tells."""
    return {"$schema": DIALECT, **RoutingConfig.model_json_schema(), "title": "ctxpipe routing"}


def printed_schema() -> str:
    """As it stands in schemas/routing.schema.json."""
    return json.dumps(routing_json_schema(), indent=2, ensure_ascii=False) + "\n"


def _read(path: Path) -> Document:
    try:
        return read_yaml(path)
    except SpecError as error:
        raise ConfigError(error.mistakes) from None


def _beside(path: Path, named: Any) -> Path | None:
    return path.parent / named if isinstance(named, str) else None


def _without_access(guard: Any) -> Any:
    endpoints = guard.get("endpoints") if isinstance(guard, dict) else None
    if not isinstance(endpoints, list):
        return guard
    kept = [
        {**{name: value for name, value in one.items() if name != "api_key"}, "url": _NOWHERE}
        if isinstance(one, dict)
        else one
        for one in endpoints
    ]
    return {**guard, "endpoints": kept}


def _valid(
    document: Document, model: type[Model], mistakes: list[Mistake], data: Any = None, at: Location = ()
) -> Model | None:
    given = document.data if data is None else data
    if not isinstance(given, dict):
        keys = ", ".join(name for name, field in model.model_fields.items() if field.is_required())
        mistakes.append(Mistake(at, f"this is a mapping with {keys}"))
        return None
    try:
        return model.model_validate(given)
    except ValidationError as error:
        mistakes += [Mistake((*at, *one.location), one.text) for one in mistakes_of(error, model, {})]
        return None


def _sound_tasks(document: Document) -> Iterator[tuple[str, TaskRouting]]:
    """Those of a file with mistakes that have the right shape: what else is wrong with them is told in the same run."""
    tasks = document.data.get("tasks") if isinstance(document.data, dict) else None
    for name, given in tasks.items() if isinstance(tasks, dict) else ():
        try:
            yield name, TaskRouting.model_validate(given)
        except ValidationError:
            continue


def _mistakes(name: str, task: TaskRouting, guard: GuardConfig | None) -> Iterator[Mistake]:
    at: Location = ("tasks", name)
    ladder = [(task.active, ("active",)), *_listed(task)]
    seen = set[str]()
    for endpoint, where in ladder:
        if endpoint in seen:
            text = f"{endpoint!r} is in this task's ladder already; name each endpoint once (retries_max tries again)"
            yield Mistake((*at, *where), text)
        seen.add(endpoint)
    if task.previous == task.active:
        yield Mistake((*at, "previous"), f"is {task.active!r}, which is the active one; leave it out")
    if task.candidate is not None and task.candidate.endpoint == task.active:
        yield Mistake((*at, "candidate", "endpoint"), f"is {task.active!r}, which is the active one already")
    if task.evidence is not None and task.override_reason is not None:
        yield Mistake((*at, "override_reason"), "stands beside evidence; keep one of the two")
    if task.limits.calls_min > task.limits.window_calls:
        text = f"is {task.limits.calls_min}, more than window_calls ({task.limits.window_calls}); it would never judge"
        yield Mistake((*at, "limits", "calls_min"), text)
    if guard is not None:
        yield from _unknown(at, task, ladder, guard)


def _listed(task: TaskRouting) -> Iterator[tuple[str, tuple[str | int, ...]]]:
    for part in ("others", "local"):
        yield from ((endpoint, (part, i)) for i, endpoint in enumerate(getattr(task, part) or ()))


def _unknown(
    at: Location, task: TaskRouting, ladder: list[tuple[str, tuple[str | int, ...]]], guard: GuardConfig
) -> Iterator[Mistake]:
    known = {endpoint.name for endpoint in guard.endpoints}
    named = list(ladder)
    if task.previous is not None:
        named.append((task.previous, ("previous",)))
    if task.candidate is not None:
        named.append((task.candidate.endpoint, ("candidate", "endpoint")))
    for endpoint, where in named:
        if endpoint not in known:
            yield Mistake((*at, *where), f"the guard has no endpoint {endpoint!r}{suggestion(endpoint, known)}")
