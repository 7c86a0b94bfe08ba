"""Prometheus for tests: the rules as they are committed, promtool, and a server that scrapes what a test names."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from deploy.local import install

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
RULE_FILES = sorted((PROMETHEUS / "rules").glob("*.yml"))
RULE_TESTS = sorted((PROMETHEUS / "tests").glob("*.yml"))


def rules(file: Path) -> list[dict[str, Any]]:
    """All rules of a file, of every group."""
    return [rule for group in yaml.safe_load(file.read_text())["groups"] for rule in group["rules"]]


def alerts() -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for file in RULE_FILES for rule in rules(file) if "alert" in rule}


def records() -> list[dict[str, Any]]:
    return [rule for file in RULE_FILES for rule in rules(file) if "record" in rule]


@cache
def promtool_program() -> str:
    install.ensure(["prometheus"])
    return install.prometheus_program("promtool")


def promtool(*words: str | Path, timeout_s: float = 120.0) -> tuple[int, str]:
    """(exit code, all that it said)"""
    done = subprocess.run(
        [promtool_program(), *map(str, words)], capture_output=True, text=True, timeout=timeout_s, check=False
    )
    return done.returncode, done.stdout + done.stderr
