"""What a load generator noted of every request, and what follows from it: exact quantiles, statuses, lateness."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

TIMED_OUT, LOST = 0, -1
"""In the place of an HTTP status: no answer within the limit; the connection ended before one."""
AT_HAND = ("default", "last_known")
"""Rungs that take no look at what is stored: an answer, and no measure of how many lookups come through."""
QUANTILES = (("p50", 0.5), ("p99", 0.99), ("p99_9", 0.999))


class Sample(msgspec.Struct, array_like=True, gc=False):
    """One request. Times are seconds of the machine's monotonic clock, which all its processes share.

    It was to be sent at `due_s`; the generator noticed at `seen_s`, sent it at `sent_s` (later where no connection was
    free) and had the whole answer at `done_s`. `label` is the answer's status and rung, `fresh/store`; `server_ms` what
    the server says that it took, -1 where it says nothing.
    """

    due_s: float
    seen_s: float
    sent_s: float
    done_s: float
    code: int
    label: str = ""
    server_ms: float = -1.0

    @property
    def latency_ms(self) -> float:
        """From when it should have been sent."""
        return (self.done_s - self.due_s) * 1000

    @property
    def own_ms(self) -> float:
        """Without the generator's own lateness."""
        return (self.done_s - self.seen_s) * 1000

    @property
    def answered(self) -> bool:
        return self.code in (200, 404)

    @property
    def looked_up(self) -> bool:
        """Answered with what is stored, or what a near cache knows to be stored."""
        return self.answered and not self.label.endswith(AT_HAND)

    @property
    def refused(self) -> bool:
        return self.code == 503


_DECODE = msgspec.msgpack.Decoder(list[Sample]).decode
_ENCODE = msgspec.msgpack.Encoder().encode


def write_samples(path: Path, samples: Sequence[Sample]) -> None:
    path.write_bytes(_ENCODE(samples))


def read_samples(path: Path) -> list[Sample]:
    return _DECODE(path.read_bytes())


def quantile(values: Sequence[float], share: float) -> float:
    """Of sorted values; the smallest one that at least this share does not exceed."""
    if not values:
        return 0.0
    return values[min(len(values) - 1, max(0, -int(-share * len(values) // 1) - 1))]


def quantiles(values: Iterable[float], digits: int = 3) -> dict[str, float]:
    """p50, p99, p99_9 and max."""
    ordered = sorted(values)
    found = {name: round(quantile(ordered, share), digits) for name, share in QUANTILES}
    return {**found, "max": round(ordered[-1], digits) if ordered else 0.0}


def summary(samples: Sequence[Sample], seconds: float) -> dict[str, Any]:
    """Of one load: nothing is left out of the latencies, timed-out requests count with the time that they waited."""
    latency = quantiles(sample.latency_ms for sample in samples)
    return {
        "requests": len(samples),
        "answers_per_s": round(sum(sample.answered for sample in samples) / seconds, 1),
        "looked_up_per_s": round(sum(sample.looked_up for sample in samples) / seconds, 1),
        **{f"{name}_ms": value for name, value in latency.items()},
        "lateness_ms": quantiles((sample.seen_s - sample.due_s) * 1000 for sample in samples),
        **counts(samples),
    }


def counts(samples: Sequence[Sample]) -> dict[str, Any]:
    """By HTTP status, by the answer's status, by its rung; `unlabelled`: neither labelled nor refused."""
    return {
        "codes": dict(sorted(Counter(_code_name(sample.code) for sample in samples).items())),
        "statuses": _counted(samples, lambda label: label.partition("/")[0]),
        "rungs": _counted(samples, lambda label: label.partition("/")[2]),
        "refused": sum(sample.refused for sample in samples),
        "unlabelled": sum(not sample.refused and not (sample.answered and sample.label) for sample in samples),
    }


def _counted(samples: Sequence[Sample], part: Callable[[str], str]) -> dict[str, int]:
    found: Counter[str] = Counter()
    for label, count in Counter(sample.label for sample in samples if sample.label).items():
        found[part(label) or "unknown"] += count
    return dict(sorted(found.items()))


def _code_name(code: int) -> str:
    return {TIMED_OUT: "timed out", LOST: "connection lost"}.get(code, str(code))
