"""Lets searches in other threads go on beside long work of this one.

A search takes the interpreter's lock some dozen times; a thread that runs Python without a pause makes it wait for
milliseconds each time.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

WORK_S, PAUSE_S = 0.0005, 0.0005

T = TypeVar("T")


def paced(items: Iterable[T]) -> Iterator[T]:
    """The items; between two of them it sleeps when it has worked for WORK_S."""
    began = time.perf_counter()
    for item in items:
        yield item
        if time.perf_counter() - began > WORK_S:
            time.sleep(PAUSE_S)
            began = time.perf_counter()
