"""Row → the text under which it meets the rows that it joins with: one spelling for what SQL calls equal. Pure."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from schemas.keys import key_part, key_text, plain_decimal

JoinText = Callable[[list[Any]], str | None]


def join_text(positions: tuple[int, ...], decimals: tuple[bool, ...]) -> JoinText:
    """Gives a row's join value as key text; None when a part is null, which joins with nothing.

    `decimals`: which parts are declared decimals on a side of the join, so that 1.00 finds 1.
    """
    if any(decimals):
        return _decimal_join(tuple(zip(positions, decimals, strict=True)))
    if len(positions) == 1:
        (position,) = positions
        return lambda values: None if values[position] is None else key_part(values[position])
    pick = operator.itemgetter(*positions)

    def join(values: list[Any]) -> str | None:
        parts = pick(values)
        return None if None in parts else key_text(parts)

    return join


def _decimal_join(columns: tuple[tuple[int, bool], ...]) -> JoinText:
    def join(values: list[Any]) -> str | None:
        parts = [plain_decimal(values[position]) if decimal else values[position] for position, decimal in columns]
        return None if None in parts else key_text(parts)

    return join
