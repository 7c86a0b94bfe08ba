"""A small suite of somebody else, in a folder of its own: a flow that doubles numbers, and what can be done to it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FLOW = '''"""Doubles."""

import asyncio


async def handle(case_input, given):
    number = case_input["number"]
    await given.clock.sleep(number / 1000)
    return {"answer": number * 2, "unit": "pieces"}
'''
CASES = 8


def case(number: int, answer: int | None = None) -> dict[str, Any]:
    return {
        "id": f"double/{number}",
        "kind": "output",
        "why": "who orders twice as much gets twice as much",
        "group": f"customer-{number % 3}",
        "input": {"number": number},
        "expect": [{"check": "equals", "path": "/answer", "value": number * 2 if answer is None else answer}],
    }


class SmallSuite:
    """`folder` is the suite; its flow is beside it, as an application's code is."""

    def __init__(self, home: Path, name: str = "orders") -> None:
        self.home, self.folder = home, home / "evals"
        (self.folder / "cases").mkdir(parents=True)
        self.write("suite.yaml", f"suite: {name}\nflow:\n  python: doubling:handle\n")
        self.flow(FLOW)
        self.cases({number: case(number) for number in range(1, CASES + 1)})
        self.write("prices.csv", "piece,2\n")

    @property
    def baseline(self) -> Path:
        return self.folder / "baseline.json"

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)

    def flow(self, text: str) -> None:
        (self.home / "doubling.py").write_text(text)

    def break_flow(self) -> None:
        """Numbers above 6 come out one too high."""
        self.flow(FLOW.replace("number * 2", "number * 2 + (number > 6)"))

    def cases(self, cases: Mapping[int, Mapping[str, Any]]) -> None:
        self.write("cases/all.jsonl", "".join(f"{json.dumps(one)}\n" for one in cases.values()))
