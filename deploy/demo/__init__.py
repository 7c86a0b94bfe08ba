"""The demo on five real tables."""
