"""What `ctxpipe dlq` prints: for people a table where there is a terminal, for programs lines of JSON."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from pipeline.commands._dlq_scope import UNITS_S

if TYPE_CHECKING:
    from pipeline.affected import Affected
    from pipeline.streams.decisions import Decision
    from pipeline.streams.letter_box import Retention
    from pipeline.streams.letter_choice import Listed, ReasonGroup

REASON_CHARACTERS_MAX = 60
KEYS_SHOWN = 3
COLOURS = {"waiting": "yellow", "failed": "red", "asked": "cyan", "applied": "green", "overtaken": "green"}
EXPIRY_TOLD_S = 7 * 86_400
"""Letters that expire so soon are told of whenever somebody lists."""

Row = tuple[str, ...]


def show_table(head: Row, rows: Sequence[Row], state_column: int | None = None) -> None:
    """Plain columns where the output is piped."""
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table

        table = Table(*head, header_style="bold", box=None, pad_edge=False)
        for row in rows:
            cells = [escape(cell) for cell in row]
            colour = COLOURS.get(row[state_column].split()[0]) if state_column is not None else None
            if state_column is not None and colour is not None:
                cells[state_column] = f"[{colour}]{cells[state_column]}[/]"
            table.add_row(*cells)
        Console().print(table)
        return
    lines = [head, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    for line in lines:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def letter_rows(listed: Sequence[tuple[str, Listed]], with_state: bool) -> tuple[Row, list[Row]]:
    """(head, rows) of letters by their labels."""
    head = ("NUMBER", "WHEN", *(("STATE",) if with_state else ()), "RECORD", "REASON", "BUNDLES")
    rows = []
    for label, one in listed:
        state = (f"failed {one.decision.attempts}x" if one.decision and one.state == "failed" else one.state,)
        reason = one.decision.why if one.decision and one.state == "failed" and one.decision.why else ""
        rows.append(
            (label, when(one.found.failed_at_ms), *(state if with_state else ()), one.found.letter.place,
             _short(reason or one.found.letter.reason), keys_text(one.keys))
        )  # fmt: skip
    return head, rows


def reason_rows(groups: Sequence[tuple[str, ReasonGroup]]) -> tuple[Row, list[Row]]:
    head = ("LETTERS", "BUNDLES", "FIRST", "LAST", "TOPIC", "REASON", "NEWEST")
    return head, [
        (str(one.count), str(len(one.bundles)), when(one.oldest_ms), when(one.newest_ms), one.topic,
         _short(one.reason), label)
        for label, one in groups
    ]  # fmt: skip


def listed_object(name: str, label: str, one: Listed) -> dict[str, Any]:
    """A letter without its record, as `--json` shows it."""
    letter, found = one.found.letter, one.found
    shown: dict[str, Any] = {"number": found.number, "of": name, "id": label, "state": one.state}
    shown |= {"reason": letter.reason, "topic": letter.topic}
    if letter.by_connector:
        shown |= {"table": letter.table, "key": letter.key, "lsn": letter.lsn, "size": letter.size}
    else:
        shown |= {"partition": letter.partition, "offset": letter.offset, "timestamp_ms": letter.timestamp_ms}
        shown |= {"digest": letter.digest, "value_bytes": letter.value_bytes, "truncated": letter.truncated}
    shown |= {"failed_at_ms": found.failed_at_ms, "bundle_keys": list(one.keys)}
    return shown | {"decision": None if one.decision is None else decision_object(one.decision)}


def decision_object(decision: Decision) -> dict[str, Any]:
    shown = {"outcome": decision.outcome, "at_ms": decision.at_ms, "by": decision.by, "why": decision.why}
    return shown | {"attempts": decision.attempts}


def group_object(name: str, one: ReasonGroup) -> dict[str, Any]:
    return {
        "of": name,
        "topic": one.topic,
        "digest": one.digest,
        "reason": one.reason,
        "letters": one.count,
        "bundles": len(one.bundles),
        "newest": one.newest,
        "oldest": one.oldest,
        "newest_ms": one.newest_ms,
        "oldest_ms": one.oldest_ms,
    }


def affected_objects(affected: Mapping[str, Affected]) -> list[dict[str, Any]]:
    """By context."""
    return [
        {"context": context, "table": one.table, "row": one.key, "stored_row": one.row, "bundle_keys": one.keys,
         "more": one.more}
        for context, one in affected.items()
    ]  # fmt: skip


def show_letter(shown: Mapping[str, Any]) -> None:
    """One letter, a line per part; what is base64 as text, as far as it is."""
    for name, value in shown.items():
        if name == "affected":
            for one in value:
                click.echo(f"{'wrong now':>13}: {_affected_line(one)}")
        elif name == "history":
            for one in value:
                click.echo(f"{'decided':>13}: {_decision_line(one)}")
        elif name not in ("decision", "id"):
            if name in ("key", "value") and value is not None and "partition" in shown:
                value = base64.b64decode(value).decode(errors="backslashreplace")
            click.echo(f"{name:>13}: {value}")


def _affected_line(one: Mapping[str, Any]) -> str:
    keys = ", ".join(one["bundle_keys"]) + (", and more" if one["more"] else "")
    row = {
        "missing": "the row is not there yet",
        "older": "an older state of the row is there",
        "newer": "nothing: the row is newer already",
        "unknown": "what of the row is there can't be compared",
    }[one["stored_row"]]
    return f"{one['context']}: {keys or 'unknown'} ({row})"


def _decision_line(one: Mapping[str, Any]) -> str:
    attempts = f" (attempt {one['attempts']})" if one["attempts"] else ""
    return f"{when(one['at_ms'])} {one['outcome']}{attempts} by {one['by'] or '?'} {one['why']}".rstrip()


def retention_lines(name: str, retention: Retention, oldest_ms: int | None, expired: int, now_ms: int) -> list[str]:
    """What goes away, or went, without anybody; nothing where all is kept."""
    lines = []
    topic = f"the dead letters of {name}"
    if expired:
        lines.append(f"{expired:,} of {topic} went away by the topic's retention, and nobody redrove or discarded them")
    mend = "set retention.ms=-1 (and retention.bytes=-1) on its topic to keep them until somebody decides"
    if oldest_ms is not None and retention.kept_ms is not None:
        left_s = (oldest_ms + retention.kept_ms - now_ms) / 1000
        if left_s < EXPIRY_TOLD_S:
            soon = f"in {duration(left_s)}" if left_s > 0 else "any moment"
            lines.append(f"the oldest of {topic} that waits expires {soon}: {mend}")
    if oldest_ms is not None and retention.kept_bytes is not None:
        lines.append(f"{topic} are kept up to {retention.kept_bytes:,} bytes, the oldest go first: {mend}")
    return lines


def when(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")


def duration(seconds: float) -> str:
    """In the largest unit of which there are two: 90 min, 3 h."""
    for unit in ("d", "h", "m"):
        if seconds >= 2 * UNITS_S[unit]:
            return f"{seconds / UNITS_S[unit]:.0f} {'min' if unit == 'm' else unit}"
    return f"{max(0.0, seconds):.0f} s"


def keys_text(keys: Sequence[str]) -> str:
    return ", ".join(keys[:KEYS_SHOWN]) + (" …" if len(keys) > KEYS_SHOWN else "") or "-"


def as_lines(objects: Sequence[Mapping[str, Any]]) -> None:
    for one in objects:
        click.echo(json.dumps(one))


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= REASON_CHARACTERS_MAX else line[: REASON_CHARACTERS_MAX - 1] + "…"
