"""Finding the programs the local stack runs, and fetching what is missing (apt-get as root, Maven for jars)."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from deploy.local.processes import run
from pipeline.core.errors import EnvironmentProblem

APT_TIMEOUT_S = 900.0
MAVEN_TIMEOUT_S = 900.0
JAVA_MAJOR_MIN = 17


@dataclass(frozen=True)
class Program:
    """Something that must be there: how to find it, and what brings it where it is missing."""

    name: str
    find: Callable[[], str | None]
    debian_package: str
    elsewhere: str


def ensure(servers: Iterable[str], say: Callable[[str], None] = lambda _line: None) -> None:
    """Make everything the named servers need available, or raise one EnvironmentProblem that names all that is missing.

    servers: of "kafka", "postgres", "redis", "cassandra"; "browser" and "prometheus" for the tests of the built-in page
    and of the alerts; "compiler" builds the server of the local model. say: gets a line before each step that takes
    long.
    """
    wanted = list(servers)
    missing = _missing(wanted)
    if missing and _may_apt_get():
        _apt_get([program.debian_package for program in missing], say)
        missing = _missing(wanted)
    if missing:
        raise EnvironmentProblem(_missing_message(missing))
    for name in wanted:
        if name in ("kafka", "cassandra"):
            jars(name, say)


def redis_program() -> str:
    return _found("redis-server")


def postgres_program(name: str) -> str:
    """Path of `postgres`, `initdb` or `pg_isready`; all from one directory, so their versions agree."""
    directory = _postgres_directory()
    if directory is None:
        raise EnvironmentProblem(_missing_message([_PROGRAMS["postgres"]]))
    return str(Path(directory) / name)


def java_program() -> str:
    return _found("java")


def cassandra_java_program() -> str:
    """A Java 17; Cassandra 5 runs on nothing newer."""
    return _found("java 17")


def browser_programs() -> tuple[str, str]:
    """Paths of Chromium and of its driver."""
    return _found("chromium"), _found("chromedriver")


def prometheus_program(name: str) -> str:
    """Path of `prometheus` or `promtool`."""
    return _found(name)


def available(server: str) -> bool:
    """Whether Kafka or Cassandra can be started at once, without installing or fetching anything."""
    programs = [_PROGRAMS[name] for name in _needs(server) if name != "mvn"]
    return all(program.find() is not None for program in programs) and _jars_directory(server).is_dir()


def jars(server: str, say: Callable[[str], None] = lambda _line: None) -> Path:
    """The directory with a server's jars, fetched by Maven on first use into a cache that all checkouts share."""
    pom, target = _pom(server), _jars_directory(server)
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / f"{server}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two first runs at once must not fetch into one directory
        if not target.is_dir():
            say(f"Fetching {server.capitalize()} with Maven (once; kept in {cache_dir()})")
            partial = target.with_name(f"{target.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            words = [_found("mvn"), "-q", "-B", "-f", str(pom), "dependency:copy-dependencies"]
            run([*words, f"-DoutputDirectory={partial}"], f"Fetching {server} with Maven", timeout_s=MAVEN_TIMEOUT_S)
            partial.rename(target)
    return target


def _pom(server: str) -> Path:
    return Path(__file__).parent / f"{server}.pom.xml"


def _jars_directory(server: str) -> Path:
    digest = hashlib.sha256(_pom(server).read_bytes()).hexdigest()[:12]
    return cache_dir() / "jars" / f"{server}-{digest}"


def cache_dir() -> Path:
    """Where fetched jars are kept between runs; CTXPIPE_CACHE moves it."""
    chosen = os.environ.get("CTXPIPE_CACHE")
    return Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ctxpipe"


def _missing(servers: Iterable[str]) -> list[Program]:
    needed: dict[str, None] = {}
    for server in servers:
        needed.update(dict.fromkeys(_needs(server)))
    return [_PROGRAMS[name] for name in needed if _PROGRAMS[name].find() is None]


def _needs(server: str) -> list[str]:
    if server == "postgres":
        return ["postgres"]
    if server == "redis":
        return ["redis-server"]
    if server == "browser":
        return ["chromium", "chromedriver"]
    if server == "prometheus":
        return ["prometheus", "promtool"]
    if server == "compiler":
        return ["g++", "cmake"]
    if not _pom(server).exists():
        raise EnvironmentProblem(
            f"No local server is called {server!r}; known: kafka, postgres, redis, cassandra, browser, prometheus, "
            "compiler."
        )
    return ["java" if server == "kafka" else "java 17", "mvn"]


def _found(name: str) -> str:
    path = _PROGRAMS[name].find()
    if path is None:
        raise EnvironmentProblem(_missing_message([_PROGRAMS[name]]))
    return path


def _missing_message(missing: list[Program]) -> str:
    lines = [f"The local stack needs {len(missing)} program(s) that are not here:"]
    lines += [f"  - {program.name}: {program.elsewhere}" for program in missing]
    packages = " ".join(sorted({program.debian_package for program in missing}))
    lines.append(f"On Debian or Ubuntu: apt-get install {packages} (ctxpipe does it itself when it runs as root).")
    return "\n".join(lines)


def _may_apt_get() -> bool:
    return os.geteuid() == 0 and shutil.which("apt-get") is not None


def _apt_get(packages: list[str], say: Callable[[str], None]) -> None:
    wanted = sorted(set(packages))
    say(f"Installing {', '.join(wanted)} with apt-get")
    environment = ["env", "DEBIAN_FRONTEND=noninteractive", "RUNLEVEL=1"]  # install programs, start no services
    run([*environment, "apt-get", "-qq", "update"], "apt-get update", timeout_s=APT_TIMEOUT_S)
    install = ["apt-get", "-qq", "install", "-y", "--no-install-recommends"]
    run([*environment, *install, *wanted], f"apt-get install {' '.join(wanted)}", timeout_s=APT_TIMEOUT_S)
    for cached in (_postgres_directory, _java):
        cached.cache_clear()


@functools.cache
def _postgres_directory() -> str | None:
    """Debian keeps the server programs of each version off the PATH; the newest version wins."""
    debian = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/postgres")]
    if debian:
        return str(max(debian, key=lambda path: int(re.sub(r"\D", "", path.parent.name) or 0)))
    found = shutil.which("postgres")
    return str(Path(found).resolve().parent) if found else None


@functools.cache
def _java(major_min: int, major_max: int) -> str | None:
    home = os.environ.get("JAVA_HOME")
    candidates = [Path(home) / "bin" / "java"] if home else []
    on_path = shutil.which("java")
    candidates += [Path(on_path)] if on_path else []
    candidates += sorted(Path("/usr/lib/jvm").glob("*/bin/java"))
    for candidate in candidates:
        if candidate.exists() and major_min <= _java_major(str(candidate)) <= major_max:
            return str(candidate)
    return None


def _chromium() -> str | None:
    found = map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"))
    return next((path for path in found if path is not None), None)


def _java_major(program: str) -> int:
    shown = subprocess.run([program, "-version"], capture_output=True, text=True, check=False)
    match = re.search(r'version "(\d+)', shown.stderr + shown.stdout)
    return int(match[1]) if match else 0


_PROGRAMS = {
    "redis-server": Program(
        "redis-server", lambda: shutil.which("redis-server"), "redis-server", "Redis 7 or newer (brew install redis)"
    ),
    "postgres": Program(
        "postgres", lambda: _postgres_directory(), "postgresql", "Postgres 14 or newer (brew install postgresql)"
    ),
    "java": Program(
        "java", lambda: _java(JAVA_MAJOR_MIN, 99), "default-jre-headless", "Java 17 or newer (brew install openjdk)"
    ),
    "java 17": Program(
        "java 17", lambda: _java(17, 17), "openjdk-17-jre-headless", "Java 17 for Cassandra (set JAVA_HOME to it)"
    ),
    "chromium": Program(
        "chromium", lambda: _chromium(), "chromium", "Chromium or Chrome (brew install --cask chromium)"
    ),
    "chromedriver": Program(
        "chromedriver",
        lambda: shutil.which("chromedriver"),
        "chromium-driver",
        "the driver of the same version (brew install --cask chromedriver)",
    ),
    **{
        name: Program(name, functools.partial(shutil.which, name), "prometheus", "Prometheus (brew install prometheus)")
        for name in ("prometheus", "promtool")
    },
    "g++": Program("g++", lambda: shutil.which("g++"), "g++", "a C++ compiler (xcode-select --install)"),
    "cmake": Program("cmake", lambda: shutil.which("cmake"), "cmake", "CMake (brew install cmake)"),
    "mvn": Program("mvn", lambda: shutil.which("mvn"), "maven", "Maven (brew install maven)"),
}


def main() -> int:
    """`python -m deploy.local.install kafka postgres redis`: prepare before anything else of ctxpipe runs."""
    try:
        ensure(sys.argv[1:], lambda line: print(f"run: {line}", file=sys.stderr))
    except EnvironmentProblem as problem:
        print(f"run: {problem}", file=sys.stderr)
        return problem.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
