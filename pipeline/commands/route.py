"""`ctxpipe route`: which model answers which task, by the routing file: shown, checked, promoted, taken back."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from pipeline.guard.routing.file import GuardFile, RoutingFile
    from pipeline.guard.routing.loading import Decision
    from pipeline.guard.routing.promotion import Edit
    from pipeline.guard.routing.state import RoutingState, Standing

OUTCOMES = {
    "first": "taken by a service that begins",
    "unchanged": "in force already",
    "promoted": "promoted by its evidence",
    "overridden": "without proof, for a reason that people gave",
    "returned": "back as the one before",
    "held": "stays back",
}
Decorated = Callable[..., Any]
FILE = click.Path(path_type=Path, dir_okay=False)
_file = click.argument("file", required=False, type=FILE)
_named_file = click.option("--file", type=FILE, help="The routing file; default: the one of the configuration.")
_guard = click.option(
    "--guard", "guard_path", type=FILE, envvar="CTXPIPE_CONFIG", default="ctxpipe.yaml", show_default=True,
    help="Endpoints and routes: a configuration, or a file with them alone.",
)  # fmt: skip
_prices = click.option("--prices", type=FILE, help="A price table; default: the one that comes with ctxpipe.")
_state = click.option("--state", "state_path", type=FILE, help="What is in force; default: in the data directory.")
_json = click.option("--json", "as_json", is_flag=True, help="One JSON object.")
_dry = click.option("--dry-run", is_flag=True, help="Show the change, and write nothing.")


@click.group()
def command() -> None:
    """The routing file names the active model of each task. Its commit is the swap: services that run take it over,
    demand its evidence, and take it back by themselves when the new model breaks its limits.

    Exit codes: 0 fine, 1 the answer is no, 2 usage or configuration, 3 the environment.
    """


@command.command()
@_file
@_guard
@_state
@_json
def show(file: Path | None, guard_path: Path, state_path: Path | None, as_json: bool) -> None:
    """Show who answers each task, who did before, who is tried, and what a service has in force."""
    guard, routing = _read(file, guard_path)
    state = _state_of(guard, state_path)
    tasks = {task: _shown(task, routing, state) for task in sorted({*routing.config.tasks, *_tasks(state)})}
    taken_back = [] if state is None else [one.model_dump() for one in state.taken_back]
    if as_json:
        click.echo(json.dumps({"file": str(routing.path), "tasks": tasks, "taken_back": taken_back}))
        return
    from rich.console import Console

    from pipeline.commands._route_show import show_tasks

    show_tasks(Console(), tasks, taken_back)


@command.command()
@_file
@_guard
@_state
@_prices
@_json
def check(file: Path | None, guard_path: Path, state_path: Path | None, prices: Path | None, as_json: bool) -> int:
    """Tell whether a service would take the file: mistakes (exit code 2), or what nothing proves (1).

    Without --state it is judged as by a service that begins.
    """
    from pipeline.guard.routing.promotion import checked
    from pipeline.guard.routing.state import StateFile

    guard = _read_guard(guard_path)
    state = None if state_path is None else StateFile(state_path).read()
    path = _routing_path(file, guard, guard_path)
    routing, decision, refused = checked(path, guard.config, state, time.time_ns() // 1000, _priced(guard, prices))
    if as_json:
        told = {task: one.reason for task, one in decision.refused.items()}
        outcomes = dict(decision.outcomes)
        click.echo(json.dumps({"file": str(path), "ok": not refused, "outcomes": outcomes, "refused": told}))
    for line in refused:
        click.echo(line, err=True)
    if not as_json and not refused:
        click.echo(f"{path}: {_summary(routing, decision)}")
    return 1 if refused else 0


@command.command()
@click.argument("task")
@click.argument("candidate")
@click.option("--evidence", "evidence", type=FILE, required=True, help="Of `ctxpipe eval compare --evidence`.")
@_named_file
@_guard
@_prices
@_dry
def promote(
    task: str, candidate: str, evidence: Path, file: Path | None, guard_path: Path, prices: Path | None, dry_run: bool
) -> int:
    """Make CANDIDATE the active model of TASK in the file, where the evidence proves it; then commit it."""
    from pipeline.guard.routing.deciding import Refusal
    from pipeline.guard.routing.promotion import promoted

    guard, routing = _read(file, guard_path)
    found = promoted(routing, guard.config, task, candidate, evidence, _priced(guard, prices))
    if isinstance(found, Refusal):
        click.echo(f"{task}: {candidate} is not promoted: {found.told}", err=True)
        return 1
    _write(found, dry_run)
    return 0


@command.command()
@click.argument("task")
@click.option("--reason", required=True, help="Why; people will read it in the file.")
@_named_file
@_guard
@_dry
def rollback(task: str, reason: str, file: Path | None, guard_path: Path, dry_run: bool) -> None:
    """Make the model before the active one of TASK again; then commit the file. It needs no evidence."""
    from pipeline.guard.routing.promotion import rolled_back

    guard, routing = _read(file, guard_path)
    _write(rolled_back(routing, guard.config, task, reason), dry_run)


@command.command()
def schema() -> None:
    """Print the JSON Schema of the routing file, for editors that complete and check while one writes."""
    from pipeline.guard.routing.file import printed_schema

    click.echo(printed_schema(), nl=False)


def _read(file: Path | None, guard_path: Path) -> tuple[GuardFile, RoutingFile]:
    from pipeline.guard.routing.file import read_routing

    guard = _read_guard(guard_path)
    return guard, read_routing(_routing_path(file, guard, guard_path), guard.config)


def _read_guard(path: Path) -> GuardFile:
    from pipeline.guard.routing.file import read_guard

    return read_guard(path)


def _routing_path(file: Path | None, guard: GuardFile, guard_path: Path) -> Path:
    from pipeline.core.errors import ConfigError

    path = file or guard.routing
    if path is None:
        raise ConfigError([f"{guard_path} names no routing file; give one, or write guard: {{routing: routing.yaml}}"])
    return path


def _state_of(guard: GuardFile, path: Path | None) -> RoutingState | None:
    """None: nothing is known of a service."""
    from pipeline.client.guarding import STATE_FILE
    from pipeline.guard.routing.state import StateFile

    if path is None and guard.data_directory is not None:
        path = guard.data_directory / STATE_FILE
        if not path.exists():
            return None
    return None if path is None else StateFile(path).read()


def _tasks(state: RoutingState | None) -> dict[str, Standing]:
    return {} if state is None else state.tasks


def _priced(guard: GuardFile, prices: Path | None) -> Callable[[str], bool]:
    from datetime import UTC, datetime

    from pipeline.guard.prices import read_prices

    path = prices or guard.prices
    table, today = read_prices() if path is None else read_prices(path), datetime.now(UTC).date()
    names = {endpoint.name: endpoint.price_name for endpoint in guard.config.endpoints}
    return lambda endpoint: table.of(names[endpoint], today) is not None


def _shown(task: str, routing: RoutingFile, state: RoutingState | None) -> dict[str, Any]:
    written = routing.config.tasks.get(task)
    standing = _tasks(state).get(task)
    named = None if written is None or written.evidence is None else written.evidence.file
    return {
        "active": None if written is None else written.active,
        "previous": None if written is None else written.previous,
        "evidence": named,
        "override_reason": None if written is None else written.override_reason,
        "candidate": None if written is None or written.candidate is None else written.candidate.endpoint,
        "share": None if written is None or written.candidate is None else written.candidate.share,
        "in_force": None if standing is None else standing.identity.endpoint,
        "since_us": None if standing is None else standing.since_us,
    }


def _summary(routing: RoutingFile, decision: Decision) -> str:
    tasks = routing.config.tasks
    parts = [f"{task}: {tasks[task].active}, {OUTCOMES[decision.outcomes[task]]}" for task in decision.standings]
    return "; ".join([*parts, *(f"{task}: {told}" for task, told in decision.told.items())])


def _write(edit: Edit, dry_run: bool) -> None:
    import difflib

    lines = difflib.unified_diff(
        edit.before.splitlines(), edit.after.splitlines(), str(edit.path), str(edit.path), lineterm="", n=1
    )
    for line in lines:
        click.echo(click.style(line, fg={"+": "green", "-": "red"}.get(line[:1])))
    if dry_run:
        click.echo("nothing was written (--dry-run)", err=True)
        return
    edit.write()
    click.echo(f"{edit.path} is changed; its commit is the swap, commit the evidence with it", err=True)
