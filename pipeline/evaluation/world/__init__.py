"""What surrounds a flow under test: the pipeline's own parts over memory, filled from logs or fixed bundles.

A case's context goes the way it goes in production (flow, stores, lookup, search, client); only Kafka, Redis and the
time are stand-ins. See README.md beside this file.
"""

from pipeline.evaluation.world.files import WorldError
from pipeline.evaluation.world.filled import SuiteFiles, forget
from pipeline.evaluation.world.opened import World, open_world
from pipeline.evaluation.world.replays import replayed
from pipeline.evaluation.world.retrieval import retrieved

__all__ = ["SuiteFiles", "World", "WorldError", "forget", "open_world", "replayed", "retrieved"]
