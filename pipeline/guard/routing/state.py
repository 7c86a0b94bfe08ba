"""What is in force, kept beside the service: who is active for each task, who was before, and what was taken back.

With it, a restart goes on where the process ended, and the commit of a model that was taken back does not promote it
again. Processes that share the file follow each other's rollbacks.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from pipeline.core.errors import ConfigError, EnvironmentProblem
from pipeline.core.section import ConfigPart
from pipeline.guard.config import Endpoint, Route
from pipeline.guard.routing.config import Limits

TAKEN_BACK_MAX = 200


class Identity(ConfigPart):
    """A model behind an endpoint: another model, or revision, under the same name is a change."""

    endpoint: str
    model: str
    revision: str = ""


class Before(ConfigPart):
    """Who was active before, with the ladder of that time."""

    identity: Identity
    route: Route


class Standing(ConfigPart):
    """What is in force for a task. `fingerprint`: of the change that made it so, see deciding.fingerprint. `previous`
    None: there is nobody to go back to."""

    identity: Identity
    route: Route
    since_us: int
    fingerprint: str
    previous: Before | None = None
    limits: Limits = Field(default_factory=Limits)


class TakenBack(ConfigPart):
    """A change that did not keep its limits."""

    task: str
    fingerprint: str
    endpoint: str
    at_us: int
    why: str


class RoutingState(ConfigPart):
    version: Literal[1] = 1
    tasks: dict[str, Standing] = Field(default_factory=dict)
    taken_back: tuple[TakenBack, ...] = ()

    def was_taken_back(self, task: str, fingerprint: str) -> TakenBack | None:
        return next((one for one in self.taken_back if one.task == task and one.fingerprint == fingerprint), None)


def identity_of(endpoint: Endpoint) -> Identity:
    return Identity(endpoint=endpoint.name, model=endpoint.model, revision=endpoint.revision)


def without(state: RoutingState, taken: TakenBack, now_us: int) -> RoutingState:
    """The task is answered by the one before again, and nobody is before that one."""
    previous = state.tasks[taken.task].previous
    assert previous is not None, f"{taken.task} has nobody to go back to"
    back = Standing(identity=previous.identity, route=previous.route, since_us=now_us, fingerprint="")
    rest = tuple(one for one in state.taken_back if (one.task, one.fingerprint) != (taken.task, taken.fingerprint))
    kept = (*rest, taken)[-TAKEN_BACK_MAX:]
    return RoutingState(tasks={**state.tasks, taken.task: back}, taken_back=kept)


def merged(disk: RoutingState, own: RoutingState) -> RoutingState:
    """What is in force here, and what anybody took back."""
    known = {(one.task, one.fingerprint) for one in own.taken_back}
    others = tuple(one for one in disk.taken_back if (one.task, one.fingerprint) not in known)
    return RoutingState(tasks=own.tasks, taken_back=(*others, *own.taken_back)[-TAKEN_BACK_MAX:])


class StateFile:
    """One file, written whole, by one process at a time. All methods block."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> RoutingState:
        """An empty one where there is no file. Raises ConfigError for one that can't be read."""
        try:
            return RoutingState.model_validate_json(self.path.read_bytes())
        except FileNotFoundError:
            return RoutingState()
        except OSError as error:
            raise ConfigError([f"{self.path}: the state of the routing can't be read: {error.strerror}"]) from None
        except ValidationError as error:
            told = error.errors(include_url=False, include_input=False)[0]["msg"]
            raise ConfigError(
                [
                    f"{self.path}: is no state of the routing ({told}). Delete it; then the routing file has to bring "
                    "evidence for every active model"
                ]
            ) from None

    def change(self, changed: Callable[[RoutingState], RoutingState]) -> RoutingState:
        """What is there, changed and durable. Raises EnvironmentProblem, and what `read` does."""
        try:
            with self._locked():
                new = changed(self.read())
                self._write(new)
                return new
        except OSError as error:
            raise EnvironmentProblem(
                f"{self.path}: the state of the routing can't be written: {error.strerror or error}. Give the service "
                "a folder that it may write to"
            ) from None

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.with_name(f".{self.path.name}.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _write(self, state: RoutingState) -> None:
        new = self.path.with_name(f".{self.path.name}.new")
        with new.open("wb") as file:
            file.write(state.model_dump_json(indent=2).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        new.replace(self.path)
