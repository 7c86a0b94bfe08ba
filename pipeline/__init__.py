"""Kafka → answer: stages, stores, streams, lookup. Imports nothing, so that connectors may import pipeline.core."""
