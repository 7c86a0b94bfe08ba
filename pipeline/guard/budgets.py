"""What may be spent and how much may be on its way: set aside before a call, settled after it. Pure.

Of one process. The hour is that of the clock, not the last sixty minutes; what was set aside in one hour is settled in
it, also when the answer comes in the next.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from pipeline.guard.config import BudgetConfig

EVERYBODY = "*"
_HOUR_US = 3_600_000_000


class _Hour:
    """What a tenant has spent or set aside in one hour."""

    __slots__ = ("number", "taken")

    def __init__(self, number: int) -> None:
        self.number, self.taken = number, Decimal(0)


@dataclass(frozen=True, slots=True, eq=False)
class Reservation:
    """`settle` it, once."""

    hour: _Hour | None
    amount: Decimal


class CostBudgets:
    """Per tenant and hour. A tenant without a limit of its own has that of `*`, each by itself."""

    def __init__(self, config: BudgetConfig) -> None:
        self._limits = config.tenant_cost_per_hour_max
        self._hours: dict[str, _Hour] = {}
        self._number = 0

    def limit(self, tenant: str | None) -> Decimal | None:
        """None: none."""
        return self._limits.get(tenant or EVERYBODY, self._limits.get(EVERYBODY)) if self._limits else None

    def reserve(self, tenant: str | None, amount: Decimal, now_us: int) -> Reservation | None:
        """None: it would be more than what is left."""
        limit = self.limit(tenant)
        if limit is None:
            return Reservation(None, amount)
        hour = self._hour(tenant or EVERYBODY, now_us)
        if hour.taken + amount > limit:
            return None
        hour.taken += amount
        return Reservation(hour, amount)

    def settle(self, reservation: Reservation, cost: Decimal | None) -> None:
        """None: nobody knows what it cost, so what was set aside counts as spent."""
        if reservation.hour is not None and cost is not None:
            reservation.hour.taken += cost - reservation.amount

    def spent(self, tenant: str | None, now_us: int) -> Decimal:
        """What is set aside included."""
        hour = self._hours.get(tenant or EVERYBODY)
        return hour.taken if hour is not None and hour.number == now_us // _HOUR_US else Decimal(0)

    def _hour(self, tenant: str, now_us: int) -> _Hour:
        number = now_us // _HOUR_US
        if number != self._number:
            self._hours.clear()
            self._number = number
        found = self._hours.get(tenant)
        if found is None:
            found = self._hours[tenant] = _Hour(number)
        return found


class InFlight:
    """How many are on their way, by name; a name without any is forgotten."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def enter(self, name: str, most: int) -> bool:
        """False: it would be one too many, and is not counted."""
        count = self._counts.get(name, 0)
        if count >= most:
            return False
        self._counts[name] = count + 1
        return True

    def leave(self, name: str) -> None:
        count = self._counts[name] - 1
        if count:
            self._counts[name] = count
        else:
            del self._counts[name]

    def count(self, name: str) -> int:
        return self._counts.get(name, 0)
