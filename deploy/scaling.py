"""Brings the figures of `ctxpipe plan` and the tables of deploy/scaling.md up to date: `python -m deploy.scaling`.

The page says above each table which command made it: `<!-- ctxpipe plan … -->`; everything from there to `<!-- end -->`
is what that command prints with --markdown.
"""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

from click.testing import CliRunner

from pipeline.commands.plan import command
from pipeline.ops.measured import FILE, collect, encoded

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "deploy" / "scaling.md"
FIGURES = ROOT / "tests" / "benchmarks"
BLOCK = re.compile(r"(<!-- ctxpipe plan (.*?) -->\n).*?(<!-- end -->)", re.DOTALL)


def brought_up_to_date(page: str) -> str:
    """The page with every table as the command prints it now. Raises ValueError for a command that is refused."""
    return BLOCK.sub(lambda found: f"{found[1]}\n{_printed(found[2])}\n{found[3]}", page)


def _printed(arguments: str) -> str:
    done = CliRunner().invoke(command, [*shlex.split(arguments), "--markdown"])
    if done.exit_code > 1 or (done.exception is not None and not isinstance(done.exception, SystemExit)):
        raise ValueError(f"ctxpipe plan {arguments}: {done.exception or done.output}")
    return done.output.rstrip("\n") + "\n"


def main() -> int:
    FILE.write_text(encoded(collect(FIGURES)))
    PAGE.write_text(brought_up_to_date(PAGE.read_text()))
    print(f"written: {FILE.relative_to(ROOT)}, {PAGE.relative_to(ROOT)}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
