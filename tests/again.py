"""`python -m tests.again CODE`: what `./run test` makes of tests that ended with the exit code CODE.

Tests of real servers measure themselves against a machine that has other things to do: one in some thousands is not in
time although nothing is wrong. Few enough of them are run once more, alone, and told by name; everything else stays as
it was. A unit test has nothing to wait for and gets no second chance.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.support.cli import ROOT

AGAIN_MAX = 3
WITH_SERVERS = ("tests/integration/", "tests/conformance/", "tests/benchmarks/")
FAILED = 1
"""pytest's exit code for tests that failed; others mean that it could not run them."""
CACHE = ROOT / ".pytest_cache" / "v" / "cache" / "lastfailed"


def worth_another_run(failed: Sequence[str]) -> bool:
    """Few, and none that had nothing to wait for. `failed` are pytest's names of tests."""
    return 0 < len(failed) <= AGAIN_MAX and all(name.startswith(WITH_SERVERS) for name in failed)


def last_failed(cache: Path = CACHE) -> list[str]:
    """What the run before this left behind; nothing where it left nothing that can be read."""
    try:
        return sorted(json.loads(cache.read_text()))
    except (OSError, ValueError):
        return []


def main(words: Sequence[str]) -> int:
    """The exit code: that of the first run, or of the second one of those that failed."""
    code = int(words[0])
    failed = last_failed() if code == FAILED else []
    if not worth_another_run(failed):
        return code
    _tell(f"{len(failed)} failed; each has real servers, so they run once more, with nothing beside them")
    again = subprocess.run([sys.executable, "-m", "pytest", "-v", *failed], cwd=ROOT, check=False).returncode
    if again == 0:
        _tell("passed only when they ran alone, which is worth a look:\n  " + "\n  ".join(failed))
    return again


def _tell(text: str) -> None:
    sys.stderr.write(f"run: {text}\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
