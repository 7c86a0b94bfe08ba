"""Waiting for a condition in a test; the conformance kit brings it."""

from connectors.conformance.waiting import eventually, eventually_sync

__all__ = ["eventually", "eventually_sync"]
