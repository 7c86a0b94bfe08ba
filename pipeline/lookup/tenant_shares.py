"""Fairness of admission: of the load that is let in, every tenant is sure of its max-min fair share, so that one that
asks for much can't starve another."""

from __future__ import annotations

import math

ACTIVE_S = 1.0
RATE_WINDOW_S = 0.5
SHARES_EVERY_S = 0.02
SHARES_PER_TENANT_S = 0.0001
"""With many tenants shares are made anew less often: it may take a hundredth of the time."""
BURST = 3.0
MODEST_LIMIT = 1.5


class Rate:
    """Of load per second, over about the last half second."""

    __slots__ = ("_at_s", "_value")

    def __init__(self) -> None:
        self._value = self._at_s = 0.0

    def add(self, load: float, now_s: float) -> None:
        self._value = self.at(now_s) + load / RATE_WINDOW_S
        self._at_s = now_s

    def at(self, now_s: float) -> float:
        return self._value * math.exp((self._at_s - now_s) / RATE_WINDOW_S)


class Tenant:
    """What one tenant has on its way, and how much it asks for lately, in load per second."""

    __slots__ = ("asked_at_s", "load", "modest", "name", "rate", "share")

    def __init__(self, name: str, now_s: float) -> None:
        self.name, self.asked_at_s = name, now_s
        self.load = self.share = 0.0
        self.rate = Rate()
        self.modest = True
        """It gets all that it wants, in the mean."""


class TenantShares:
    """Used in one event loop: `asks` for every request, `take` for those that are let in, `give_back` at their end."""

    def __init__(self) -> None:
        self._tenants: dict[str, Tenant] = {}
        self._shared_at_s: float | None = None
        self._kept_free = 0.0
        self.load = 0.0
        """Of all."""

    @property
    def active(self) -> int:
        """Tenants that asked within the last second, or have something on its way."""
        return len(self._tenants)

    def asks(self, name: str, weight: float, now_s: float, limit: float, latency_s: float) -> Tenant:
        """Whether it is let in or not: its share goes by what it asks for."""
        tenant = self._tenants.get(name)
        if tenant is None:
            tenant = self._tenants[name] = Tenant(name, now_s)
            self._share(now_s, limit, latency_s)
        tenant.rate.add(weight, now_s)
        tenant.asked_at_s = now_s
        every_s = max(SHARES_EVERY_S, len(self._tenants) * SHARES_PER_TENANT_S)
        if self._shared_at_s is None or now_s - self._shared_at_s >= every_s:
            self._share(now_s, limit, latency_s)
        return tenant

    def has_room(self, tenant: Tenant, weight: float, limit: float) -> bool:
        """In its own share, or in what nobody is sure of. Who wants no more than its share in the mean is refused last,
        when the load is far above the limit."""
        if tenant.load + weight <= tenant.share:
            return True
        if tenant.modest and len(self._tenants) > 1:
            return self.load + weight <= MODEST_LIMIT * limit
        kept_free_for_others = self._kept_free - _free(tenant)
        return self.load + weight <= limit - kept_free_for_others

    def take(self, tenant: Tenant, weight: float) -> None:
        self._move(tenant, weight)

    def give_back(self, tenant: Tenant, weight: float) -> None:
        self._move(tenant, -weight)

    def _move(self, tenant: Tenant, weight: float) -> None:
        self._kept_free -= _free(tenant)
        tenant.load += weight
        self.load += weight
        self._kept_free += _free(tenant)

    def _share(self, now_s: float, limit: float, latency_s: float) -> None:
        self._shared_at_s = now_s
        idle = [one.name for one in self._tenants.values() if now_s - one.asked_at_s > ACTIVE_S and one.load < 1e-6]
        for name in idle:
            del self._tenants[name]
        tenants = list(self._tenants.values())
        wanted = [_wanted(one, now_s, latency_s) for one in tenants]
        fair = fair_shares(wanted, limit)
        for one, share, mean, got in zip(tenants, with_bursts(wanted, fair, limit), wanted, fair, strict=True):
            one.share, one.modest = share, got >= mean
        self._kept_free = sum(map(_free, tenants))
        self.load = sum(one.load for one in tenants)


def with_bursts(wanted: list[float], shares: list[float], limit: float) -> list[float]:
    """Whoever gets all that it wants in the mean also gets room for chance, since arrivals come in clusters; it is
    taken from those who want more than there is, of each at most half of its share."""
    modest = [share >= mean for mean, share in zip(wanted, shares, strict=True)]
    room = [BURST * math.sqrt(mean) + 1.0 for mean in wanted]
    greedy = max(modest.count(False), 1)
    taken = sum(more for more, is_modest in zip(room, modest, strict=True) if is_modest) / greedy
    return [
        min(share + more, limit) if is_modest else max(share - taken, share / 2)
        for share, more, is_modest in zip(shares, room, modest, strict=True)
    ]


def fair_shares(demands: list[float], limit: float) -> list[float]:
    """Max-min: nobody gets more than asked for, and nobody could get more without taking it from one who has less."""
    shares = [0.0] * len(demands)
    left = limit
    for number, place in enumerate(sorted(range(len(demands)), key=demands.__getitem__)):
        shares[place] = min(demands[place], left / (len(demands) - number))
        left -= shares[place]
    return shares


def _free(tenant: Tenant) -> float:
    return max(0.0, tenant.share - tenant.load)


def _wanted(tenant: Tenant, now_s: float, latency_s: float) -> float:
    """In the mean, by Little's law."""
    return tenant.rate.at(now_s) * latency_s
