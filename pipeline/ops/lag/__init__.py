"""Lag of consumer groups, ours and others: sampled on a clock of its own, judged, published and explained."""
