"""Hits for a person: a table in a terminal, lines elsewhere."""

from __future__ import annotations

import re
from typing import Any

import click
import msgspec

SUMMARY_CHARACTERS = 120
PIECE_CHARACTERS = 240
_WORD = re.compile(r"\w+")


def show(answer: bytes, query: str, in_terminal: bool) -> None:
    """`answer` as the HTTP interface gives it."""
    found = msgspec.json.decode(answer)
    click.echo(header(found), err=not in_terminal)
    for one in found.get("not_reached", ()):
        click.echo(f"position not reached: {one['reason']}", err=True)
    if in_terminal:
        _show_table(found, query)
        return
    for hit in found["hits"]:
        moved = "\tmoved on" if hit["moved_on"] else ""
        click.echo(f"{hit['key']}\t{score_of(hit)}\t{piece_of(hit)}\t{summary_of(hit)}{moved}")


def header(found: dict[str, Any]) -> str:
    """How it was found, by which space, how old."""
    behind = found["index"]["behind_records"]
    age = "" if not behind else f", {behind:,} records behind"
    degraded = f"; {found['degraded']}" if found["degraded"] else ""
    count = len(found["hits"])
    hits = "1 hit" if count == 1 else f"{count} hits"
    return f"{found['context']}: {hits}, {found['mode']} search in space {found['space']}{age}{degraded}"


def score_of(hit: dict[str, Any]) -> str:
    """The cosine where there is one, else the score of the words."""
    return f"{hit['cosine']:.3f}" if hit["cosine"] is not None else f"words {hit['bm25'] or 0:.1f}"


def piece_of(hit: dict[str, Any]) -> str:
    """The piece of text that was found, on one line."""
    text = " ".join(((hit["passage"] or {}).get("text") or "").split())
    return text if len(text) <= PIECE_CHARACTERS else text[: PIECE_CHARACTERS - 1] + "…"


def summary_of(hit: dict[str, Any]) -> str:
    """The plain values of the bundle, the first of them first."""
    bundle = hit["answer"].get("bundle") or {}
    plain = [f"{name}={value}" for name, value in bundle.items() if not isinstance(value, dict | list)]
    text = ", ".join(plain)
    return text if len(text) <= SUMMARY_CHARACTERS else text[: SUMMARY_CHARACTERS - 1] + "…"


def _show_table(found: dict[str, Any], query: str) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not found["hits"]:
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("key", "score", "text", "bundle"):
        table.add_column(column, justify="right" if column == "score" else "left", overflow="fold")
    words = [re.escape(word) for word in _WORD.findall(query) if len(word) > 2]
    for hit in found["hits"]:
        piece = Text(piece_of(hit))
        for word in words:
            piece.highlight_regex(rf"(?i)\b{word}\w*", "bold yellow")
        summary = Text(summary_of(hit), style="dim")
        if hit["moved_on"]:
            summary.append("  has another text meanwhile", style="yellow")
        table.add_row(Text(hit["key"]), score_of(hit), piece, summary)
    Console().print(table)
