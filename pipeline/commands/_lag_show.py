"""Reports of lag for a person: tables in colour at a terminal and plain elsewhere, and findings in words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from pipeline.ops.lag.model import OK, REWIND, STALL, STOP, UNKNOWN, WARN, Finding, GroupLag, Report
from pipeline.ops.lag.words import count, duration, several

if TYPE_CHECKING:
    from rich.table import Table

    from pipeline.ops.lag.hot_keys import HotKey

COLOURS = {OK: "green", UNKNOWN: "magenta", WARN: "yellow", STALL: "red", STOP: "red", REWIND: "red"}
SEVERITIES = {"wrong": ("red", "✗"), "warning": ("yellow", "!"), "note": ("cyan", "·")}
ARROWS = {"growing": "↑", "shrinking": "↓", "steady": "→"}
HOT_SHARE = 0.05
"""Of the records that were read: a key with less is one among many."""
BLOCKS = "▁▂▃▄▅▆▇█"
SPARK_SIGNS = 30

Cell = tuple[str, str]
"""(text, colour)"""


@dataclass(frozen=True)
class View:
    """A table before anybody knows where it is shown."""

    title: str
    headers: tuple[str, ...]
    rows: Sequence[tuple[Cell, ...]]


@dataclass(frozen=True)
class Wishes:
    """What a person wants to see beside the groups."""

    stages: bool = False
    partitions: bool = False
    sparklines: bool = False


def views(report: Report, wishes: Wishes) -> list[View]:
    """What there is to show, without empty tables."""
    found = [_groups(report.groups, wishes.sparklines)]
    if wishes.partitions:
        found.append(_partitions(report.groups))
    if wishes.stages:
        found.append(_stages(report))
    found += [_sources(report.sources), _replicas(report), _canaries(report.canaries), _letters(report.dead_letters)]
    return [view for view in found if view.rows]


def show(report: Report, wishes: Wishes) -> None:
    """Tables, then what is left to say."""
    found = views(report, wishes)
    if not report.groups:
        click.echo("No consumer group has commits that could be watched.")
    for view in found:
        _print(view)
    for line in closing(report):
        click.echo(line)


def closing(report: Report) -> Iterator[str]:
    wrong = sum(finding.severity == "wrong" for finding in report.findings)
    warnings = sum(finding.severity == "warning" for finding in report.findings)
    if wrong or warnings:
        told = f"{several(wrong, 'fault')}, {several(warnings, 'warning')}"
        yield f"{told}: ctxpipe lag --explain says what, why and what mends it"
    if report.collector.floors:
        yield f"Not worth chasing: {'; '.join(report.collector.floors)}"


def show_findings(report: Report) -> None:
    if not report.findings:
        greatest = max((group.lag_s or 0.0 for group in report.groups), default=0.0)
        click.echo(f"All is well: {several(len(report.groups), 'group')}, at most {duration(greatest)} behind.")
    for finding in report.findings:
        _say(finding)
    if report.collector.floors:
        click.echo(f"Not worth chasing: {'; '.join(report.collector.floors)}")


def show_hot_keys(keys: Sequence[HotKey]) -> None:
    """Those that stand out; where none does, that is the answer."""
    if not keys:
        click.echo("Nothing waits, so no key is hot.")
        return
    hot = [one for one in keys if one.records >= HOT_SHARE * one.of_records]
    rows = [
        (
            _plain(one.group), _plain(f"{one.topic}/{one.partition}"), _plain(one.key),
            _plain(f"{one.records / max(1, one.of_records):.0%} of {count(one.of_records)}"),
        )
        for one in hot
    ]  # fmt: skip
    if rows:
        _print(View("Keys of what waits", ("GROUP", "PARTITION", "KEY", "SHARE OF WHAT WAS READ"), rows))
    for topic, partition, read in sorted({(one.topic, one.partition, one.of_records) for one in keys}):
        if not any((one.topic, one.partition) == (topic, partition) for one in hot):
            click.echo(f"{topic}/{partition}: no key has {HOT_SHARE:.0%} of the {several(read, 'record')} read")


def sparkline(values: Sequence[float]) -> str:
    """The last values as blocks; a flat zero is the lowest."""
    shown = list(values)[-SPARK_SIGNS:]
    most = max(shown, default=0)
    return "".join(BLOCKS[round(value / most * (len(BLOCKS) - 1))] if most > 0 else BLOCKS[0] for value in shown)


def _groups(groups: Iterable[GroupLag], sparklines: bool) -> View:
    headers = ["GROUP", "STATUS", "LAG", "BEHIND", "TREND", "CATCH UP", "MEMBERS", *(["LAST SAMPLES"] * sparklines)]
    rows = []
    for one in groups:
        colour = COLOURS.get(one.status, "")
        status = f"{one.status} (rebalancing)" if one.rebalancing else one.status
        row = [
            _plain(one.group), (status, colour), _plain(count(one.lag_records)), (_behind(one), colour),
            _plain(_trend(one.trend, one.velocity)), _plain(_catch_up(one)),
            _plain(count(one.members) if one.members is not None else "-"),
        ]  # fmt: skip
        rows.append((*row, *([(sparkline(one.history), colour)] * sparklines)))
    return View("Consumer groups", tuple(headers), rows)


def _partitions(groups: Iterable[GroupLag]) -> View:
    headers = ("GROUP", "PARTITION", "STATUS", "COMMITTED", "END", "LAG", "BEHIND", "TREND", "")
    rows = []
    for group in groups:
        for topic in group.topics:
            for one in topic.partitions:
                known = "unknown" if one.lag_s is None else duration(one.lag_s)
                notes = [*(["hot"] * one.hot), *(["stuck"] * one.stuck), *([one.reason] * bool(one.reason))]
                rows.append((
                    _plain(group.group), _plain(f"{topic.topic}/{one.partition}"),
                    (one.status, COLOURS.get(one.status, "")),
                    _plain("-" if one.committed is None else str(one.committed)), _plain(str(one.end)),
                    _plain(count(one.lag_records)), _plain(known), _plain(_trend("", one.velocity)),
                    _plain(", ".join(notes)),
                ))  # fmt: skip
    return View("Partitions", headers, rows)


def _stages(report: Report) -> View:
    rows = []
    for one in report.stages:
        late = one.late / one.updates if one.updates else 0.0
        colour = "red" if late > 0.1 else "yellow" if late > 0 else "green"
        rows.append((
            _plain(one.context), _plain(one.stage), _plain(count(one.updates)), _plain(_or_dash(one.p50_s)),
            _plain(_or_dash(one.p99_s)), _plain(_or_dash(one.budget_s)), (f"{late:.0%}", colour),
        ))  # fmt: skip
    return View("Stages, since the commit", ("CONTEXT", "STAGE", "UPDATES", "P50", "P99", "BUDGET", "LATE"), rows)


def _sources(sources: Iterable[dict[str, Any]]) -> View:
    rows = []
    for one in sources:
        up = {True: ("up", "green"), False: ("away", "red")}.get(one.get("up"), ("-", ""))  # type: ignore[arg-type]
        worst: dict[str, Any] = next(iter(one.get("findings") or ()), {})
        headroom = one.get("headroom_s")
        rows.append((
            _plain(one.get("source")), _plain(one.get("connector")), up, _plain(_size(one.get("unconfirmed_bytes"))),
            _plain(_size(one.get("retained_bytes"))), _plain(_or_dash(headroom)), _plain(worst.get("message", "")),
        ))  # fmt: skip
    headers = ("SOURCE", "CONNECTOR", "STATE", "UNCONFIRMED", "RETAINED", "HEADROOM", "")
    return View("Sources", headers, rows)


def _replicas(report: Report) -> View:
    rows = [
        (
            _plain(one.url), _plain(one.role or "-"), _plain(one.context or "-"),
            (one.status, COLOURS.get(one.status, "")),
            _plain("-" if one.lag_records is None else count(one.lag_records)), _plain(one.reason),
        )
        for one in report.replicas
    ]  # fmt: skip
    return View("Other roles", ("PAGE", "ROLE", "CONTEXT", "STATUS", "LAG", ""), rows)


def _canaries(canaries: Iterable[dict[str, Any]]) -> View:
    rows = [
        (
            _plain(one.get("source")), _plain(one.get("url")), ("seen", "green") if one.get("up") else ("late", "red"),
            _plain(_or_dash(one.get("age_s"))), _plain(one.get("reason") or ""),
        )
        for one in canaries
    ]  # fmt: skip
    return View("Canaries", ("SOURCE", "LOOKED UP AT", "STATE", "AGE", ""), rows)


def _letters(letters: Iterable[dict[str, Any]]) -> View:
    rows = [
        (
            _plain(one.get("name")), (count(one.get("waiting")), "yellow" if one.get("waiting") else "green"),
            _plain(count(one.get("bundles"))), _plain(_or_dash(one.get("oldest_age_s"))),
            _plain(_or_dash(one.get("expiry_s"))),
        )
        for one in letters
    ]  # fmt: skip
    return View("Dead letters", ("OF", "WAITING", "BUNDLES", "OLDEST", "EXPIRES IN"), rows)


def table(view: View) -> Table:
    """For a terminal."""
    from rich.table import Table
    from rich.text import Text

    drawn = Table(*[header.capitalize() for header in view.headers], title=view.title, title_justify="left")
    for row in view.rows:
        drawn.add_row(*(Text(text, style=colour) for text, colour in row))
    return drawn


def _print(view: View) -> None:
    if click.get_text_stream("stdout").isatty():
        from rich.console import Console

        Console().print(table(view))
        return
    lines = [view.headers, *(tuple(text for text, _ in row) for row in view.rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(view.headers))]
    for line in lines:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    click.echo()


def _say(finding: Finding) -> None:
    colour, sign = SEVERITIES.get(finding.severity, ("", "·"))
    click.echo(f"{click.style(f'{sign} {finding.where}', fg=colour, bold=True)}: {finding.what}")
    for name, text in (("why", finding.why), ("outlook", finding.outlook), ("mend", finding.mend)):
        if text:
            click.echo(f"    {name + ':':<9}{text}")
    if finding.runbook:
        click.echo(f"    runbook: {finding.runbook}")


def _behind(group: GroupLag) -> str:
    if group.lag_s is None:
        return "unknown"
    return f"≥ {duration(group.lag_s)}" if group.lag_problem else duration(group.lag_s)


def _trend(name: str, velocity: float | None) -> str:
    if velocity is None:
        return "-"
    arrow = ARROWS.get(name, "")
    return f"{arrow} {velocity:+,.0f}/s".strip() if abs(velocity) >= 0.5 else arrow or "0/s"


def _catch_up(group: GroupLag) -> str:
    if not group.lag_records:
        return "-"
    if group.status in (STOP, STALL) or group.trend == "growing":
        return "never"
    return "?" if group.catch_up_s is None else duration(group.catch_up_s)


def _plain(text: object) -> Cell:
    return str(text), ""


def _or_dash(seconds: float | None) -> str:
    return "-" if seconds is None else duration(seconds)


def _size(size_bytes: int | None) -> str:
    if size_bytes is None:
        return "-"
    amount, unit = float(size_bytes), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if amount < 1024:
            break
        amount, unit = amount / 1024, larger
    return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
