"""What is counted of requests for the objectives of alerts, and what is not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from pipeline.core import metrics
from pipeline.core.errors import Fatal, Retryable
from pipeline.lookup.admission import Refusal
from pipeline.lookup.admitting import Shed
from pipeline.lookup.keys import MalformedKey
from pipeline.lookup.outcomes import Outcomes

NAMES = ("in_time", "late", "shed", "failed")


def counted(operation: str) -> dict[str, float]:
    return {name: metrics.lookup_requests.labels(operation, name)._value.get() for name in NAMES}


def fails(error: BaseException) -> Callable[[], None]:
    def work() -> None:
        raise error

    return work


@pytest.mark.parametrize(
    ("budget_ms", "work", "expected"),
    [
        (60_000.0, lambda: None, "in_time"),
        (0.0, lambda: None, "late"),
        (60_000.0, fails(Shed(Refusal("overload", 1.0))), "shed"),
        (60_000.0, fails(Retryable("away")), "failed"),
        (60_000.0, fails(Fatal("torn")), "failed"),
        (60_000.0, fails(ZeroDivisionError()), "failed"),
        (60_000.0, fails(MalformedKey("a key is text")), None),
        (60_000.0, fails(asyncio.CancelledError()), None),
    ],
)
def test_each_request_is_one_of_these_or_a_mistake_of_its_caller(
    budget_ms: float, work: Callable[[], None], expected: str | None, request: pytest.FixtureRequest
) -> None:
    operation = request.node.name
    outcomes = Outcomes(operation)
    try:
        with outcomes.of(budget_ms, (MalformedKey,)):
            work()
    except BaseException as error:  # noqa: BLE001 - it must come through as it was
        assert error.__class__ is not AssertionError
    assert {name: n for name, n in counted(operation).items() if n} == ({} if expected is None else {expected: 1.0})
