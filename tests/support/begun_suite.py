"""The suite that `ctxpipe eval init` writes, in a folder of the test's own, and what tests do to it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.evaluation.runner import run_suite
from pipeline.evaluation.scaffold import begin_suite
from pipeline.evaluation.suite import Suite, read_suite
from pipeline.evaluation.values import Run

BUNDLES = {"bundles": "bundles/orders.jsonl"}
WHEN = {"order": "1", "question": "When does it come?"}
CASES = "cases/first.jsonl"
_COUNTS = re.compile(r"^counts:.*\n", re.MULTILINE)


class BegunSuite:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        begin_suite(folder)

    def read(self) -> Suite:
        return read_suite(self.folder)

    def run(self, **options: Any) -> Run:
        return run_suite(self.read(), **{"jobs": 0, **options})

    def cases(self, *cases: Any) -> None:
        """Nothing but these; texts stand as lines as they are."""
        lines = [one if isinstance(one, str) else json.dumps(one) for one in cases]
        (self.folder / CASES).write_text("".join(f"{line}\n" for line in lines))
        manifest = self.folder / "suite.yaml"
        manifest.write_text(_COUNTS.sub("", manifest.read_text()))

    def flow(self, name: str, text: str) -> None:
        """The flow is `handle` of a new module called so."""
        (self.folder / f"{name}.py").write_text(text)
        self.change("suite.yaml", lambda old: old.replace("support_flow:handle", f"{name}:handle"))

    def change(self, file: str, change: Callable[[str], str]) -> None:
        path = self.folder / file
        before = path.read_text()
        after = change(before)
        assert after != before, f"{file} was not changed"
        path.write_text(after)


def case(name: str = "c", *expect: Any, **parts: Any) -> dict[str, Any]:
    """An output case that asks when order 1 comes."""
    made = {"id": name, "kind": "output", "context": BUNDLES, "input": WHEN, **parts}
    return {"expect": list(expect) or [{"check": "raised_nothing"}], **made}
