"""Answers: the service (no HTTP in it) and its HTTP face."""
