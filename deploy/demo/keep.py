"""What `ctxpipe demo --keep` leaves running: remembered by process, so that `--stop` ends that and nothing else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from deploy.local.processes import ProcessMark, end
from deploy.local.stack import Stack
from pipeline.core.errors import EnvironmentProblem

_FILE = "kept.json"


def remember(root: Path, pids: Sequence[int]) -> None:
    """Notes the roles' processes with their start times: a reused number is not mistaken for them."""
    marks = [asdict(ProcessMark.of(pid)) for pid in pids]
    (root / _FILE).write_text(json.dumps(marks))


def refuse_if_kept(root: Path) -> None:
    """Raises EnvironmentProblem when an earlier demo still runs in this directory."""
    if any(mark.alive() for mark in _marks(root)):
        raise EnvironmentProblem(f"a demo is still running in {root}. End it first: ctxpipe demo --stop --dir {root}")


def end_kept(root: Path) -> None:
    """Ends the remembered roles and the servers, and removes the demo's data."""
    for mark in reversed(_marks(root)):
        end(mark)
    Stack(root / "servers").down()
    shutil.rmtree(root, ignore_errors=True)


def _marks(root: Path) -> list[ProcessMark]:
    try:
        return [ProcessMark(**mark) for mark in json.loads((root / _FILE).read_text())]
    except FileNotFoundError:
        return []
