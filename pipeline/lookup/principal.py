"""Who asks, and what of it they may see: every kind of credential becomes one of these. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from schemas.bundle import Meta
from schemas.context import ContextSpec

BUNDLES, SEARCH, METRICS, ALL_TENANTS = "bundles:read", "search:read", "metrics:read", "tenants:all"


@dataclass(frozen=True, slots=True)
class Principal:
    """`scopes` are what it may do: an action, or an action and a context (`bundles:read:flight`). `tenant` is whose
    bundles it sees where a context keeps tenants apart; None: nobody's. `fields`: context → paths of its bundles that
    are shown; contexts that are not named are shown whole."""

    name: str
    tenant: str | None = None
    scopes: frozenset[str] = frozenset()
    fields: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def may(self, action: str, context: str | None = None) -> bool:
        """Of a context, or of all of them."""
        return action in self.scopes or (context is not None and f"{action}:{context}" in self.scopes)

    def knows(self, context: str) -> bool:
        """Whether any of its scopes names this context."""
        return self.may(BUNDLES, context) or self.may(SEARCH, context)

    def tenant_in(self, spec: ContextSpec) -> str | None:
        """Whose bundles of this context it sees: a tenant, "" for nobody's, None for all."""
        if spec.tenant is None or ALL_TENANTS in self.scopes:
            return None
        return self.tenant or ""

    def sees(self, spec: ContextSpec, meta: Meta) -> bool:
        """Whether a bundle is one of those; what it may not see is answered as if it did not exist."""
        tenant = self.tenant_in(spec)
        return tenant is None or (tenant != "" and meta.tenant == tenant)
