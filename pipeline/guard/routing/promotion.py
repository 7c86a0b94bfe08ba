"""What `ctxpipe route` does to a routing file: another active model with its evidence, or back to the one before."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.core.errors import ConfigError
from pipeline.guard.config import GuardConfig
from pipeline.guard.routing.config import TaskRouting, base_route, route_of
from pipeline.guard.routing.deciding import Refusal, Wanted, decide
from pipeline.guard.routing.editing import edited
from pipeline.guard.routing.file import RoutingFile, read_routing
from pipeline.guard.routing.loading import Decision, Snapshot, Source, decided, mistakes_of
from pipeline.guard.routing.proof import read_evidence
from pipeline.guard.routing.state import RoutingState, Standing, identity_of
from schemas.yaml_file import read_yaml, suggestion


@dataclass(frozen=True, slots=True)
class Edit:
    """A file as it is and as it would be; `write` it."""

    path: Path
    before: str
    after: str

    def write(self) -> None:
        """At once, so that nobody reads half of it. Raises ConfigError."""
        new = self.path.with_name(f".{self.path.name}.new")
        try:
            new.write_text(self.after)
            new.replace(self.path)
        except OSError as error:
            raise ConfigError([f"{self.path}: can't be written: {error.strerror}"]) from None


def promoted(
    file: RoutingFile, guard: GuardConfig, task: str, candidate: str, evidence: Path, priced: Callable[[str], bool]
) -> Edit | Refusal:
    """The file with `candidate` as the active model. Refused where the evidence is not one of this change."""
    routing = _task(file, task)
    endpoints = {endpoint.name: endpoint for endpoint in guard.endpoints}
    if candidate not in endpoints:
        raise ConfigError([f"the guard has no endpoint {candidate!r}{suggestion(candidate, endpoints)}"])
    if candidate == routing.active:
        raise ConfigError([f"{file.place(task, 'active')}: {candidate!r} is the active model of {task!r} already"])
    if routing.limits.cost_per_call_max is not None and not priced(candidate):
        return Refusal("unpriced", f"limits.cost_per_call_max is set, and nobody knows what {candidate!r} costs")
    proof = read_evidence(evidence, None)
    if isinstance(proof, Refusal):
        return proof
    before = identity_of(endpoints[routing.active])
    wanted = Wanted(task, routing, identity_of(endpoints[candidate]), before, None)
    standing = Standing(identity=before, route=route_of(routing, base_route(guard, task)), since_us=0, fingerprint="")
    found = decide(wanted, standing, proof, file.config.demands)
    if isinstance(found, Refusal):
        return found
    digest = hashlib.sha256(evidence.read_bytes()).hexdigest()
    named = os.path.relpath(evidence, file.path.parent)
    return _edit(
        file,
        guard,
        task,
        {
            "active": candidate,
            "previous": routing.active,
            "evidence": {"file": named, "sha256": digest},
            "override_reason": None,
            **_ladder(routing, routing.active, candidate),
        },
    )


def rolled_back(file: RoutingFile, guard: GuardConfig, task: str, reason: str) -> Edit:
    """The file with the one before as the active model."""
    routing = _task(file, task)
    if routing.previous is None:
        raise ConfigError([f"{file.place(task)}: the file does not say who was active for {task!r} before (previous)"])
    told = f"rolled back from {routing.active}: {reason}"
    changes = {"active": routing.previous, "previous": None, "evidence": None, "override_reason": told}
    return _edit(file, guard, task, {**changes, **_ladder(routing, routing.active, routing.previous)})


def checked(
    path: Path, guard: GuardConfig, state: RoutingState | None, now_us: int, priced: Callable[[str], bool]
) -> tuple[RoutingFile, Decision, list[str]]:
    """(file, what a service would do with it, what it would refuse). `state` None: of a service that begins. Raises
    ConfigError for mistakes."""
    snapshot: Snapshot = Source(path, guard).read()
    found = decided(snapshot, guard, state or RoutingState(), now_us, lambda endpoint: priced(endpoint.name))
    return snapshot.file, found, mistakes_of(found, snapshot.file)


def _ladder(routing: TaskRouting, old: str, new: str) -> Mapping[str, Any]:
    """Where the new one stood further down, the old one takes its place; it is no candidate any more."""
    changes: dict[str, Any] = {}
    listed = {*(routing.others or ()), *(routing.local or ())}
    for part in ("others", "local"):
        names = getattr(routing, part)
        if names is not None and new in names:
            instead = [old] if old not in listed else []
            changes[part] = [name for one in names for name in (instead if one == new else [one])]
    if routing.candidate is not None and routing.candidate.endpoint == new:
        changes["candidate"] = None
    return changes


def _edit(file: RoutingFile, guard: GuardConfig, task: str, changes: Mapping[str, Any]) -> Edit:
    before = file.path.read_text()
    after = edited(before, task, changes)
    data = file.document.data
    wanted = {key: value for key, value in {**data["tasks"][task], **changes}.items() if value is not None}
    trial = file.path.with_name(f".{file.path.name}.trial")
    try:
        trial.write_text(after)
        if read_yaml(trial).data != {**data, "tasks": {**data["tasks"], task: wanted}}:
            raise ConfigError([f"{file.path}: the task {task!r} can't be edited as it is written; write {changes}"])
        read_routing(trial, guard)
    except OSError as error:
        raise ConfigError([f"{file.path}: can't be written beside: {error.strerror}"]) from None
    finally:
        trial.unlink(missing_ok=True)
    return Edit(file.path, before, after)


def _task(file: RoutingFile, task: str) -> TaskRouting:
    found = file.config.tasks.get(task)
    if found is None:
        raise ConfigError([f"{file.path}: there is no task {task!r}{suggestion(task, file.config.tasks)}"])
    return found
