"""What a check is: its name, what it takes, which kinds of cases can have it, and the pure function that judges."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from pipeline.evaluation.values import CheckResult, Expectation, Kind, Observed

FLOW_KINDS: tuple[Kind, ...] = ("trace", "output", "malformed", "degraded", "latency")
"""Kinds that run the flow under test, so that there is an output and a trace."""


class Named(Protocol):
    """Of a suite, what checks look up by name."""

    @property
    def schemas(self) -> Mapping[str, Any]: ...

    @property
    def specs(self) -> Mapping[str, Any]: ...


Judge = Callable[[Expectation, Observed, Named], CheckResult]
Wrong = Callable[[Expectation, Named], Iterator[str]]


def no_mistakes(expected: Expectation, suite: Named) -> Iterator[str]:
    """Of a check whose parts are right whatever they are."""
    yield from ()


@dataclass(frozen=True, slots=True)
class Check:
    """`takes`: keys of an expectation beside `check` that it knows; `needs`: those that must be there. `wrong` tells
    what is wrong with their values when the suite is read, so that `judge` may rely on them."""

    name: str
    kinds: tuple[Kind, ...]
    judge: Judge = field(repr=False)
    takes: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    wrong: Wrong = field(default=no_mistakes, repr=False)


def passed(expected: Expectation, score: float = 1.0) -> CheckResult:
    return CheckResult(check=expected.check, passed=True, score=score)


def failed(expected: Expectation, told: str, score: float = 0.0) -> CheckResult:
    return CheckResult(check=expected.check, passed=False, told=told, score=score)


def verdict(expected: Expectation, mistake: str) -> CheckResult:
    """`mistake` "": it passed."""
    return failed(expected, mistake) if mistake else passed(expected)
