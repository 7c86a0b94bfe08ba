"""What suite.yaml names in Python: where modules are looked for, and the objects in them."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from pipeline.evaluation.manifest import FlowPart
from schemas.yaml_file import suggestion


def import_object(name: str) -> Any:
    """What `module:object` names. Raises ValueError with one sentence."""
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise ValueError(f"{name!r} is no object; write module:name, such as mine.flow:handle")
    try:
        found: Any = importlib.import_module(module)
    except Exception as error:  # noqa: BLE001 - a module of somebody else: whatever it raises is told, not guessed at
        raise ValueError(f"{module} can't be imported: {type(error).__name__}: {error}") from None
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ValueError(f"{module} has no {attribute!r}{suggestion(part, vars(found))[:200]}")
        found = getattr(found, part)
    return found


def import_paths(suite_folder: Path, flow: FlowPart | None) -> list[str]:
    """Where the flow's modules are looked for before all other places."""
    extra = [str((suite_folder / one).resolve()) for one in (flow.path if flow else ())]
    return [*extra, str(Path.cwd()), str(suite_folder.resolve())]


def prepare_imports(suite_folder: Path, flow: FlowPart | None) -> None:
    """Puts those places on sys.path, each once."""
    for one in reversed(import_paths(suite_folder, flow)):
        if one not in sys.path:
            sys.path.insert(0, one)
