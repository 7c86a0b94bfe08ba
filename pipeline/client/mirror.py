"""Writes `blocking.py` from `asynchronous.py`, so that the two clients can't drift: the same methods, arguments and
manuals, each call carried to an event loop in a thread of its own.

After a change there: `python -m pipeline.client.mirror`; a test compares.
"""

from __future__ import annotations

import ast
from pathlib import Path

ASYNCHRONOUS, BLOCKING = (Path(__file__).with_name(f"{name}.py") for name in ("asynchronous", "blocking"))

_HEAD = '''"""The client for code without an event loop. Made from asynchronous.py by mirror.py: change it there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from pipeline.client.asking import Paths, Position
from pipeline.client.asynchronous import AsyncClient, Mode
from pipeline.client.bundle import Bundle
from pipeline.client.portal import Portal
from pipeline.client.results import ContextInfo, Found, PastBundle


class Client:
    """AsyncClient for code without an event loop: the same calls, answers and errors, safe for many threads at once.

    Make one, keep it, close it (or use it in `with`). Its connections live in a thread of its own; don't call it from
    a coroutine, whose loop would stand still meanwhile.
    """

    _client: AsyncClient
    _portal: Portal
'''
_TAIL = '''
    def close(self) -> None:
        """Ends its connections and its thread; calls on their way fail."""
        self._portal.close(self._client.close)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
'''
_OWN = ("close", "__aenter__", "__aexit__")


def blocking_source() -> str:
    """The text of blocking.py."""
    source = ASYNCHRONOUS.read_text()
    tree = ast.parse(source)
    client = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "AsyncClient")
    methods = [node for node in client.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return _HEAD + "".join(_method(source, node) for node in methods if node.name not in _OWN) + _TAIL


def _method(source: str, node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    lines = source.splitlines()
    first = node.decorator_list[0].lineno if node.decorator_list else node.lineno
    manual = node.body[0]
    assert isinstance(manual, ast.Expr), f"{node.name} has no manual"
    head = "\n".join(lines[first - 1 : manual.end_lineno])
    head = head.replace("    async def ", "    def ", 1).replace("-> AsyncClient:", "-> Client:")
    return f"\n{head}\n{_body(node)}\n"


def _body(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    names = [one.arg for one in node.args.args if one.arg not in ("self", "cls")]
    given = ", ".join([*names, *(f"{one.arg}={one.arg}" for one in node.args.kwonlyargs)])
    if node.name == "__init__":
        return f"        self._client = AsyncClient({given})\n        self._portal = Portal()"
    if node.name == "direct":
        return (
            f"        made = cls.__new__(cls)\n        made._client = AsyncClient.direct({given})\n"
            "        made._portal = Portal()\n        return made"
        )
    if not isinstance(node, ast.AsyncFunctionDef):
        return f"        return AsyncClient.{node.name}({given})"
    return f"        return self._portal.run(self._client.{node.name}({given}))"


def formatted(source: str) -> str:
    """As the house formats it."""
    import subprocess
    import sys

    command = [sys.executable, "-m", "ruff", "format", "--stdin-filename", str(BLOCKING), "-"]
    done = subprocess.run(command, input=source, capture_output=True, text=True, check=True)
    return done.stdout


if __name__ == "__main__":
    BLOCKING.write_text(formatted(blocking_source()))
