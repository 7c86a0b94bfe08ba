"""`python -m deploy.pages`: writes the dashboards and the list of metrics in the runbook."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from deploy.pages import board_of_evals, board_of_guard, boards, boards_of_roles
from deploy.pages.metric_list import with_metrics
from deploy.pages.panels import Dashboard, as_json
from pipeline.core.metrics import DEFINITIONS

DEPLOY = Path(__file__).parents[1]
GRAFANA, RUNBOOK_FILE = DEPLOY / "grafana", DEPLOY / "runbook.md"
DASHBOARDS: Mapping[str, Callable[[], Dashboard]] = {
    "overview": boards.overview,
    "pipeline": boards.pipeline,
    "lag": boards.lag,
    "lookup": boards_of_roles.lookup,
    "embedding": boards_of_roles.embedding,
    "sources": boards_of_roles.sources,
    "guard": board_of_guard.guard,
    "evals": board_of_evals.evals,
}


def pages() -> dict[Path, str]:
    """What every file should hold."""
    found = {GRAFANA / f"{name}.json": as_json(make()) for name, make in DASHBOARDS.items()}
    return {**found, RUNBOOK_FILE: with_metrics(RUNBOOK_FILE.read_text(), DEFINITIONS)}


def main() -> None:
    GRAFANA.mkdir(exist_ok=True)
    for file, text in pages().items():
        file.write_text(text)
        print(f"wrote {file.relative_to(DEPLOY.parent)}")


if __name__ == "__main__":
    main()
