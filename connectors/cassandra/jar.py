"""Finds what the sidecar needs to run: Debezium's jar, fetched by Maven on first use, and a Java for it."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import shutil
import subprocess
import zipfile
from pathlib import Path

from connectors.cassandra.deliveries import TOLD_BY
from pipeline.core.errors import EnvironmentProblem

log = logging.getLogger(__name__)

JAVA_MAJOR = 17
MAVEN_TIMEOUT_S = 900.0
ARTIFACTS = {
    4: "io.debezium:debezium-connector-cassandra-4:3.5.0.Final:jar:jar-with-dependencies",
    5: "io.debezium:debezium-connector-cassandra-5:3.4.1.Final:jar:jar-with-dependencies",
}
"""By Cassandra's major version. Only the jars with everything in them: resolving their dependencies fails."""


def sidecar_jar(cassandra_major: int) -> Path:
    """The jar for this Cassandra, from the cache that all checkouts share (CTXPIPE_CACHE moves it). Blocks while Maven
    fetches 100 MB, once.
    """
    artifact = ARTIFACTS.get(cassandra_major)
    if artifact is None:
        raise EnvironmentProblem(
            f"There is no Debezium connector for Cassandra {cassandra_major}; known: {', '.join(map(str, ARTIFACTS))}."
        )
    target = _cache_dir() / "jars" / _file_name(artifact)
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two first runs at once must not write one file
        if not target.exists():
            log.info("Maven fetches the sidecar, once: %s", artifact)
            _fetch(artifact, target)
    return target


def require_telling(jar: Path) -> None:
    """Raises EnvironmentProblem for a jar in which something tells nothing of what Kafka has: then nobody would know
    when a segment may be deleted."""
    try:
        with zipfile.ZipFile(jar) as opened:
            classes = {name: opened.read(f"{name.replace('.', '/')}.class") for name in TOLD_BY}
    except (OSError, zipfile.BadZipFile, KeyError) as error:
        raise EnvironmentProblem(f"{jar} is no jar of the sidecar: {_reason(error)}. {_MEND}") from error
    silent = [name for name, words in TOLD_BY.items() if words not in classes[name]]
    if silent:
        raise EnvironmentProblem(
            f"{jar} has another version of {', '.join(silent)}, which does not log what Kafka has: then ctxpipe can't "
            f"know when a segment of the change log may be deleted. {_MEND}"
        )


def java_program(chosen: str = "") -> str:
    """A Java 17: Cassandra's own code, which reads the commit log, runs on nothing newer. Raises EnvironmentProblem."""
    candidates = [Path(chosen)] if chosen else _javas()
    for candidate in candidates:
        if candidate.exists() and _major(candidate) == JAVA_MAJOR:
            return str(candidate)
    what = f"{chosen} is no Java {JAVA_MAJOR}" if chosen else f"There is no Java {JAVA_MAJOR} here"
    raise EnvironmentProblem(
        f"{what}; the sidecar needs one. Install it (apt-get install openjdk-{JAVA_MAJOR}-jre-headless), or write its "
        "path to sidecar.java."
    )


_MEND = f"Mend sidecar.jar: leave it out, or fetch one of {' and '.join(ARTIFACTS.values())} and write its path there."


def _reason(error: Exception) -> str:
    return str(error.args[0]) if isinstance(error, KeyError) else str(error)


def _fetch(artifact: str, target: Path) -> None:
    maven = shutil.which("mvn")
    if maven is None:
        raise EnvironmentProblem(
            f"Maven is missing; it fetches the sidecar. Install it (apt-get install maven), or fetch {artifact} "
            "yourself and write its path to sidecar.jar."
        )
    partial = target.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    goal = ["dependency:copy", f"-Dartifact={artifact}", f"-DoutputDirectory={partial}"]
    get = ["dependency:get", "-Dtransitive=false", f"-Dartifact={artifact}"]
    for words in (get, goal):
        _run([maven, "-q", "-B", *words])
    next(partial.glob("*.jar")).rename(target)
    shutil.rmtree(partial, ignore_errors=True)


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=MAVEN_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as slow:
        raise EnvironmentProblem(f"Maven did not fetch the sidecar within {MAVEN_TIMEOUT_S:.0f} s.") from slow
    if done.returncode != 0:
        tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-8:])
        raise EnvironmentProblem(f"Maven can't fetch the sidecar:\n{tail}")


def _file_name(artifact: str) -> str:
    _group, name, version, *_ = artifact.split(":")
    return f"{name}-{version}.jar"


def _cache_dir() -> Path:
    """The directory of deploy/local/install.py, which connectors must not import."""
    chosen = os.environ.get("CTXPIPE_CACHE")
    return Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ctxpipe"


def _javas() -> list[Path]:
    home, on_path = os.environ.get("JAVA_HOME"), shutil.which("java")
    found = [Path(home) / "bin" / "java"] if home else []
    found += [Path(on_path)] if on_path else []
    return found + sorted(Path("/usr/lib/jvm").glob("*/bin/java"))


def _major(program: Path) -> int:
    shown = subprocess.run([str(program), "-version"], capture_output=True, text=True, check=False)
    match = re.search(r'version "(\d+)', shown.stderr + shown.stdout)
    return int(match[1]) if match else 0
