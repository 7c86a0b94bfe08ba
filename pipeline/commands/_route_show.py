"""The table of `ctxpipe route show`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

_NONE = "-"


def show_tasks(
    console: Console, tasks: Mapping[str, Mapping[str, Any]], taken_back: Sequence[Mapping[str, Any]]
) -> None:
    table = Table(box=None, pad_edge=False)
    for name in ("task", "active", "before", "proof", "candidate", "in force", "since"):
        table.add_column(name, overflow="fold")
    for task, one in tasks.items():
        candidate = _NONE if one["candidate"] is None else f"{one['candidate']} ({one['share']:.0%})"
        proof = one["evidence"] or (one["override_reason"] and f"none: {one['override_reason']}")
        in_force = one["in_force"] or _NONE
        style = "yellow" if one["in_force"] not in (None, one["active"]) else None
        cells = (task, one["active"], one["previous"], proof, candidate, in_force, _moment(one["since_us"]))
        table.add_row(*(escape(cell or _NONE) for cell in cells), style=style)
    console.print(table)
    for one in taken_back:
        when = _moment(one["at_us"])
        console.print(f"{one['endpoint']} was taken back for {one['task']} on {when}: {one['why']}", markup=False)


def _moment(at_us: int | None) -> str:
    return _NONE if at_us is None else f"{datetime.fromtimestamp(at_us / 1_000_000, UTC):%Y-%m-%d %H:%M:%SZ}"
