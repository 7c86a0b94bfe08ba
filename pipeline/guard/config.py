"""Which endpoints there are, and in which order a task's call goes down them: as the section `guard` has them."""

from __future__ import annotations

from pipeline.core.guarding import BreakerConfig, BudgetConfig, Constraint, Endpoint, GuardConfig, Route

__all__ = ["BreakerConfig", "BudgetConfig", "Constraint", "Endpoint", "GuardConfig", "Route"]
