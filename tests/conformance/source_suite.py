"""What tests of the Postgres source beyond the conformance kit take from it."""

from connectors.conformance.memory import MemoryPositions, MemorySink, apply
from connectors.conformance.running import Running

__all__ = ["MemoryPositions", "MemorySink", "Running", "apply"]
