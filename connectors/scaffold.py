"""Writes a new connector's package from connectors/template: one that runs, to be changed a step at a time."""

from __future__ import annotations

import keyword
import re
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from connectors.registry import installed
from pipeline.core.errors import ConfigError, EnvironmentProblem

_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
_SUFFIX = ".template"
_PLACEHOLDER = "acme"


def write_package(name: str, directory: Path) -> list[Path]:
    """The files written, relative to `directory`. Raises ConfigError for a name or a directory that can't be taken."""
    mistakes = [*_name_mistakes(name), *_directory_mistakes(directory)]
    if mistakes:
        raise ConfigError(mistakes)
    written = []
    try:
        for place, text in _templates(files("connectors").joinpath("template")):
            path = Path(_renamed(place.removesuffix(_SUFFIX), name))
            (directory / path).parent.mkdir(parents=True, exist_ok=True)
            (directory / path).write_text(_renamed(text, name))
            written.append(path)
    except OSError as error:
        raise EnvironmentProblem(f"{error.filename or directory} can't be written: {error.strerror}") from error
    return sorted(written)


def _name_mistakes(name: str) -> list[str]:
    if not _NAME.fullmatch(name) or keyword.iskeyword(name):
        return [f"{name!r} is no name for a connector; take lower case letters, digits and _, such as wiki_pages"]
    if any(one.name == name for one in installed()):
        return [f"a connector {name!r} is installed already; `ctxpipe connector list` shows them"]
    return []


def _directory_mistakes(directory: Path) -> list[str]:
    if directory.is_dir() and not any(directory.iterdir()):
        return []
    return [f"{directory} exists already; name a new directory"] if directory.exists() else []


def _templates(folder: Traversable, place: str = "") -> list[tuple[str, str]]:
    found = []
    for entry in folder.iterdir():
        if entry.is_dir():
            found += _templates(entry, f"{place}{entry.name}/")
        elif entry.name.endswith(_SUFFIX):
            found.append((f"{place}{entry.name}", entry.read_text(encoding="utf-8")))
    return found


def _renamed(text: str, name: str) -> str:
    """acme → wiki_pages, Acme → WikiPages in classes and in prose."""
    capitalised = "".join(part.capitalize() for part in name.split("_"))
    return text.replace(_PLACEHOLDER, name).replace(_PLACEHOLDER.capitalize(), capitalised)
