"""Kafka → answer: the stages, stores, streams and the lookup. Imports nothing, so that connectors may import pipeline.core."""
