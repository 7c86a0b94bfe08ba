"""Checks: code, not a judge, tells whether what was observed is what the case expects. Pure; the table is in README."""

from pipeline.evaluation.checks.registry import CHECKS, expectation_mistakes, judged

__all__ = ["CHECKS", "expectation_mistakes", "judged"]
