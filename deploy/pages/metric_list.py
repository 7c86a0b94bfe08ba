"""The list of metrics in the runbook: every one of pipeline.core.metrics, under the role that shows it."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.core.metrics import Definition

BEGIN = "<!-- metrics: written by python -m deploy.pages -->"
END = "<!-- end of metrics -->"

ROLES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("`ctxpipe connect`", ("connector",)),
    ("`ctxpipe worker`, bundles", ("worker", "watermark")),
    ("`ctxpipe worker`, embedding", ("embedding",)),
    ("`ctxpipe serve`", ("lookup", "active_space", "search", "replica")),
    ("Whoever calls models through `pipeline.guard`", ("guard",)),
    ("`ctxpipe eval run --prometheus`, `ctxpipe eval drift`", ("eval",)),
    ("Every role on a change's way: connect, worker, serve", ("freshness",)),
    ("`ctxpipe canary`", ("canary",)),
    ("`ctxpipe collector`", ("group", "partition", "collector", "source", "dead_letters")),
)
"""Title → the words after `ctxpipe_` that its metrics begin with."""
OTHERS = "Others"


def by_role(definitions: Sequence[Definition]) -> dict[str, list[Definition]]:
    """In the order of ROLES; what fits none of them comes last."""
    found: dict[str, list[Definition]] = {title: [] for title, _ in ROLES}
    for definition in definitions:
        found.setdefault(_role(definition.name), []).append(definition)
    return found


def with_metrics(runbook: str, definitions: Sequence[Definition]) -> str:
    """The runbook with the list between its two marks written anew."""
    before, _, rest = runbook.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{_listed(definitions)}\n{END}{after}"


def _role(name: str) -> str:
    short = name.removeprefix("ctxpipe_")
    return next((title for title, begins in ROLES if short.startswith(tuple(f"{one}_" for one in begins))), OTHERS)


def _listed(definitions: Sequence[Definition]) -> str:
    lines = [
        "Every page also has the usual ones of the process: `process_cpu_seconds_total`, `process_open_fds`,",
        "`process_resident_memory_bytes`, `process_start_time_seconds`. A histogram has `_bucket`, `_sum`, `_count`.",
        "",
    ]
    for title, listed in by_role(definitions).items():
        if not listed:
            continue
        lines += [f"### {title}", "", "| metric | kind | labels | meaning |", "| --- | --- | --- | --- |"]
        lines += [f"| `{d.name}` | {d.kind} | {', '.join(d.labels)} | {d.meaning} |" for d in listed]
        lines.append("")
    return "\n".join(lines)
