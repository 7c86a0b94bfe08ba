"""A suite to begin with: a small flow, its context, models' recordings and cases; it runs and passes as it is."""

from __future__ import annotations

import shutil
from pathlib import Path

from pipeline.core.errors import ConfigError, EnvironmentProblem

TEMPLATE = Path(__file__).parent / "template"


def begin_suite(folder: Path) -> list[Path]:
    """Writes the suite and returns its files, relative to the folder. Raises ConfigError where something is there
    already, EnvironmentProblem where nothing can be written."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError([f"{folder} is there already and not empty; name a new folder"])
    try:
        shutil.copytree(TEMPLATE, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__", "reports"))
    except OSError as error:
        raise EnvironmentProblem(f"{folder} can't be written: {error.strerror or error}") from None
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
