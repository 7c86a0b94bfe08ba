"""Which connectors there are: plugins found by entry point, and the sources of a configuration parsed by theirs.

A connector is a `Plugin` object in its own package and one line under `[project.entry-points."ctxpipe.connectors"]`:

    PLUGIN = Plugin("acme", "rows of Acme's outbox", AcmeConfig, AcmeSource)

What it can do besides reading is not declared: the optional protocols of connectors/source.py that its source
implements are its abilities.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib import metadata
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from connectors import source as protocols
from connectors.source import Source
from pipeline.core.errors import ConfigError

GROUP = "ctxpipe.connectors"
ABILITIES: Mapping[str, type[Any]] = types.MappingProxyType(
    {
        "topics": protocols.Topics,
        "check": protocols.Checking,
        "discovery": protocols.Discovering,
        "columns": protocols.Describing,
        "snapshot on request": protocols.Snapshotting,
        "fan-out": protocols.MeasuringFanOut,
        "progress": protocols.Progressing,
        "lag": protocols.Lag,
        "watch": protocols.Watched,
        "reset": protocols.Resetting,
        "check of position": protocols.PositionChecking,
    }
)
"""What `ctxpipe connector list` calls an optional protocol."""

_BROKEN = (ImportError, AttributeError, SyntaxError, TypeError, ValueError, NameError)
"""What importing somebody's module raises when it does not fit this installation: it is told, the others go on."""


class SourceConfig(BaseModel):
    """Base of a section `sources.<name>`: unknown keys are refused, and it knows its own name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    connector: str = ""
    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=40, description="the source's name, its topics' prefix")


@dataclass(frozen=True)
class Plugin:
    """A connector. `config` is its pydantic model, secrets as SecretStr; `source(config)` makes a Source.

    `source` None: its topics are filled by somebody else, and there is nothing to run.
    """

    name: str
    summary: str
    config: type[BaseModel]
    source: type[Any] | None

    def abilities(self) -> list[str]:
        return [name for name, protocol in ABILITIES.items() if self.can(protocol)]

    def can(self, protocol: type[Any]) -> bool:
        return self.source is not None and issubclass(self.source, protocol)

    def problems(self) -> list[str]:
        """Why this is no connector that can be used, each a sentence."""
        found = []
        if not (isinstance(self.config, type) and issubclass(self.config, BaseModel)):
            return [f"its config is no pydantic model but {self.config!r}"]
        if self.config.model_config.get("extra") != "forbid":
            found.append(f'{self.config.__name__} takes unknown keys; set model_config = ConfigDict(extra="forbid")')
        found += [
            f"{self.config.__name__} has no field {field!r}; inherit from connectors.registry.SourceConfig"
            for field in ("connector", "name")
            if field not in self.config.model_fields
        ]
        if self.source is not None:
            missing = [name for name in ("open", "read", "acknowledge", "close") if not hasattr(self.source, name)]
            if missing:
                found.append(f"{self.source.__name__} has no {', '.join(missing)}; see connectors.source.Source")
            elif not self.can(protocols.Topics):
                found.append(f"{self.source.__name__} does not tell its topics; see connectors.source.Topics")
        return found


@dataclass(frozen=True)
class Installed:
    """An entry point, its plugin or why there is none, and the distribution that brings it."""

    name: str
    plugin: Plugin | None
    origin: str
    problem: str = ""


@dataclass(frozen=True)
class Configured:
    """A source of a configuration: its connector and its parsed section."""

    plugin: Plugin
    config: Any

    @property
    def name(self) -> str:
        name: str = self.config.name
        return name

    @property
    def position_name(self) -> str:
        """Under what the position is kept. A section need not inherit from SourceConfig: then, the source's name."""
        name: str = getattr(self.config, "position_name", self.name)
        return name

    def source(self) -> Source:
        """A new object; nothing is connected yet. Raises ConfigError for a connector that has nothing to run."""
        if self.plugin.source is None:
            text = f"sources.{self.name}: its topics are filled by others ({self.plugin.name}); there is nothing to run"
            raise ConfigError([text])
        made: Source = self.plugin.source(self.config)
        return made

    def topics(self) -> list[str]:
        """Of its tables."""
        source = self.source() if self.plugin.source is not None else None
        return source.table_topics() if isinstance(source, protocols.Topics) else []

    @property
    def keeps_all(self) -> bool:
        """Its topics must not be compacted."""
        return self.plugin.can(protocols.KeepingAll)


@cache
def installed() -> tuple[Installed, ...]:
    """All connectors of this environment, by name; also those that can't be loaded."""
    points = sorted(metadata.entry_points(group=GROUP), key=lambda point: (point.name, point.value))
    return tuple(_load(point) for point in points)


def find(name: str) -> Plugin:
    """Raises ConfigError with the nearest name, or with what is wrong with the connector of that name."""
    entry = next((one for one in installed() if one.name == name), None)
    if entry is None:
        raise ConfigError([unknown(name, (one.name for one in installed()))])
    if entry.plugin is None:
        raise ConfigError([f"connector {name} of {entry.origin} can't be used: {entry.problem}"])
    return entry.plugin


def unknown(name: object, names: Iterable[str]) -> str:
    known = sorted(set(names))
    near = get_close_matches(str(name), known, 1)
    hint = f"; did you mean {near[0]}?" if near else "."
    return f"{name!r} is unknown{hint} ctxpipe has the connectors: {', '.join(known)}"


def configure(sources: Mapping[str, Mapping[str, Any]]) -> list[Configured]:
    """Sections `sources.<name>`, parsed by their connectors, in order. Raises ConfigError with all mistakes of all."""
    found: list[Configured] = []
    mistakes: list[str] = []
    for name, section in sources.items():
        try:
            plugin = find(str(section.get("connector")))
        except ConfigError as error:
            mistakes += [f"sources.{name}.connector: {mistake}" for mistake in error.mistakes]
            continue
        try:
            found.append(configure_one(plugin, name, section))
        except ConfigError as error:
            mistakes += error.mistakes
    if mistakes:
        raise ConfigError(mistakes)
    return found


def configure_one(plugin: Plugin, name: str, section: Mapping[str, Any]) -> Configured:
    """Raises ConfigError with every mistake of the section, each `sources.<name>.<field>: …`, and no value in it."""
    try:
        return Configured(plugin, plugin.config.model_validate({**section, "name": name}))
    except ValidationError as error:
        items = error.errors(include_input=False, include_url=False)
        raise ConfigError([_sentence(plugin, name, item) for item in items]) from None


def _load(point: metadata.EntryPoint) -> Installed:
    origin = f"{point.dist.name} {point.dist.version}" if point.dist is not None else point.value
    try:
        plugin = point.load()
    except _BROKEN as error:
        return Installed(point.name, None, origin, f"{type(error).__name__}: {error}")
    if not isinstance(plugin, Plugin):
        return Installed(point.name, None, origin, f"{point.value} is no connectors.registry.Plugin")
    problems = plugin.problems()
    if plugin.name != point.name:
        problems.append(f"its entry point says {point.name}, it calls itself {plugin.name}")
    return Installed(point.name, None if problems else plugin, origin, "; ".join(problems))


def _sentence(plugin: Plugin, name: str, item: Mapping[str, Any]) -> str:
    location = [str(part) for part in item["loc"]]
    where = ".".join(["sources", name, *location])
    if item["type"] == "extra_forbidden":
        known = sorted(_known_keys(plugin.config, location[:-1]) - {"name"})
        near = get_close_matches(location[-1], known, 1)
        hint = f"; did you mean {near[0]}?" if near else "."
        return f"{where}: unknown key{hint} A {plugin.name.capitalize()} source knows: {', '.join(known)}"
    if item["type"] == "missing":
        field = plugin.config.model_fields.get(location[-1])
        meaning = f": {field.description}" if field is not None and field.description else ""
        return f"{where}: is missing{meaning}"
    return f"{where}: {item['msg'].removeprefix('Value error, ')}"


def _known_keys(model: type[BaseModel], location: list[str]) -> set[str]:
    """The keys of the part of a section at `location`; those of the section where that can't be told."""
    models = [model]
    for part in location:
        inner = [found for one in models if part in one.model_fields for found in _models_in(one, part)]
        models = inner or models
    return {field for one in models for field in one.model_fields}


def _models_in(model: type[BaseModel], field: str) -> Iterator[type[BaseModel]]:
    waiting: list[Any] = [model.model_fields[field].annotation]
    while waiting:
        annotation = waiting.pop()
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield annotation
        waiting += typing.get_args(annotation)
