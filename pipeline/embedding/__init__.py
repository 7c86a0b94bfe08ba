"""Texts become vectors: engines, embedding spaces, batching."""
