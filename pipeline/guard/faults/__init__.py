"""A server that misbehaves as model endpoints do, by a script: for tests of whoever calls them."""

from pipeline.guard.faults.answers import FAULTS
from pipeline.guard.faults.server import FaultServer

__all__ = ["FAULTS", "FaultServer"]
