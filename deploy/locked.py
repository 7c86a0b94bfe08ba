"""What an image is built from, out of requirements.lock: pins for the resolver, and for what it chose the hashes.

The lock holds the developers' tools and every extra as well; an image wants a part of it, and still nothing that the
lock does not name. It runs before anything is installed: the standard library is all it needs.

- `locked.py wanted PYPROJECT EXTRAS` prints what the project and these extras (with commas) ask for;
- `locked.py pins LOCK [WITHOUT…]` prints `name==version` of all but some packages;
- `locked.py hashes LOCK FOLDER [WITHOUT…]` prints the entries, hashes included, of the wheels in a folder, and refuses
  one that the lock does not have.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path

ENTRY = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)(?:\[[^\]]*\])?==([^\s\\;]+)")
USAGE = "usage: locked.py wanted PYPROJECT EXTRAS | pins LOCK [WITHOUT…] | hashes LOCK FOLDER [WITHOUT…]"
EXIT_REFUSED, EXIT_USAGE = 1, 2


def wanted(pyproject: str, extras: Collection[str]) -> str:
    """A requirement a line. Raises ValueError that names all extras that the project has not."""
    project = tomllib.loads(pyproject)["project"]
    optional = project.get("optional-dependencies", {})
    unknown = [extra for extra in extras if extra not in optional]
    if unknown:
        raise ValueError(f"there is no extra {', '.join(unknown)}; pyproject.toml has {', '.join(sorted(optional))}")
    asked = [*project["dependencies"], *(line for extra in extras for line in optional[extra])]
    return "".join(f"{line}\n" for line in dict.fromkeys(asked))


def entries(lock: str) -> dict[str, str]:
    """Name, as wheels spell it in comparisons, → its whole entry, over several lines."""
    found: dict[str, str] = {}
    name = None
    for line in lock.splitlines():
        start = ENTRY.match(line)
        if start is not None:
            name = normal(start[1])
            found[name] = line
        elif name is not None and line.startswith((" ", "\t")) and line.strip():
            found[name] += "\n" + line
        else:
            name = None
    return found


def pins(lock: str, without: Collection[str] = ()) -> str:
    """`name==version`, a line each."""
    left_out = {normal(name) for name in without}
    return "".join(f"{name}=={_version(entry)}\n" for name, entry in entries(lock).items() if name not in left_out)


def hashed(lock: str, wheels: Sequence[str], without: Collection[str] = ()) -> str:
    """The entries of these wheels (file names). Raises ValueError that names all that the lock has not, or has in
    another version."""
    known, left_out = entries(lock), {normal(name) for name in without}
    wanted = [(normal(wheel.split("-")[0]), wheel.split("-")[1]) for wheel in sorted(wheels)]
    wanted = [(name, version) for name, version in wanted if name not in left_out]
    foreign = [f"{name} {version}" for name, version in wanted if not _is(known, name, version)]
    if foreign:
        raise ValueError(f"requirements.lock does not have {', '.join(foreign)}")
    return "".join(f"{known[name]}\n" for name, _ in wanted)


def normal(name: str) -> str:
    """As the packaging standards compare names."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _is(known: Mapping[str, str], name: str, version: str) -> bool:
    return name in known and _version(known[name]) == version


def _version(entry: str) -> str:
    start = ENTRY.match(entry)
    assert start is not None, entry
    return start[2]


def main(arguments: Sequence[str]) -> int:
    match arguments:
        case ["wanted", pyproject, extras]:
            names = [extra.strip() for extra in extras.split(",") if extra.strip()]
            tell = partial(wanted, Path(pyproject).read_text(), names)
        case ["pins", lock, *without]:
            tell = partial(pins, Path(lock).read_text(), without)
        case ["hashes", lock, folder, *without]:
            wheels = [path.name for path in Path(folder).glob("*.whl")]
            tell = partial(hashed, Path(lock).read_text(), wheels, without)
        case _:
            print(USAGE, file=sys.stderr)
            return EXIT_USAGE
    try:
        print(tell(), end="")
    except ValueError as error:
        print(f"locked.py: {error}", file=sys.stderr)
        return EXIT_REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
