"""What suite.yaml names in Python: where modules are looked for, and the objects in them."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from pipeline.evaluation.manifest import FlowPart
from schemas.yaml_file import suggestion

_brought: set[str] = set()
"""Folders of the suites of this process."""
_not_theirs: set[str] = set()
"""Modules that were there before the first of them, this package for one."""


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


def prepare_imports(suite_folder: Path, flow: FlowPart | None) -> None:
    """Puts the folders that modules are looked for in before all others: the flow's `path`, the working directory, the
    suite. What another suite's folders had brought into this process is forgotten: a module of the same name would be
    tested in place of the one that is meant."""
    own = [str((suite_folder / one).resolve()) for one in (*(flow.path if flow else ()), ".")]
    _not_theirs.update(() if _brought else _names())
    for folder in _brought.difference(own):
        _forget(folder)
    _brought.update(own)
    for one in reversed([*own[:-1], str(Path.cwd()), own[-1]]):
        sys.path[:] = [one, *(other for other in sys.path if other != one)]
    importlib.invalidate_caches()


def _names() -> set[str]:
    return {name.partition(".")[0] for name in sys.modules}


def _forget(folder: str) -> None:
    """Modules and packages that stand right in this folder, and came after the first suite."""
    roots = {name for name in _names() - _not_theirs if _folder_of(name) == folder}
    for name in [one for one in sys.modules if one.partition(".")[0] in roots]:
        del sys.modules[name]


def _folder_of(name: str) -> str:
    file = getattr(sys.modules.get(name), "__file__", None)
    if file is None:
        return ""
    path = Path(file).resolve()
    return str(path.parent.parent if path.name == "__init__.py" else path.parent)
