"""Runs the shell steps of a GitHub workflow's job as a runner would: expressions, conditions, outputs, what fails."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

EXPRESSION = re.compile(r"\$\{\{\s*(.*?)\s*\}\}")
NAME = re.compile(r"'[^']*'|[A-Za-z_][\w-]*(?:\.[\w-]+)*(?:\(\))?")
STEP_TIMEOUT_S = 240


@dataclass
class Ran:
    """What a job came to. `actions`: what steps with `uses` were given, in their order."""

    failed: list[str] = field(default_factory=list)
    codes: dict[str, int] = field(default_factory=dict)
    said: dict[str, str] = field(default_factory=dict)
    actions: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    outputs: dict[str, Any] = field(default_factory=dict)
    summary: str = ""


def run_job(
    workflow: Mapping[str, Any],
    job: str,
    folder: Path,
    inputs: Mapping[str, Any],
    event: Mapping[str, Any],
    environment: Mapping[str, str],
) -> Ran:
    """`folder`: the checkout. Steps with `uses` are only noted. Inputs have the defaults that the workflow gives."""
    on = workflow.get("on", workflow.get(True))  # YAML 1.1 reads `on` as true
    defaults = {name: one.get("default", "") for name, one in on["workflow_call"]["inputs"].items()}
    steps: dict[str, Any] = {}
    github = {"workspace": str(folder), "repository": "team/orders", "token": "t0ken", "event": event}
    context = {"inputs": {**defaults, **inputs}, "github": github, "steps": steps}
    made = workflow["jobs"][job]
    temporary = folder.parent / "runner"
    temporary.mkdir(exist_ok=True)
    summary = temporary / "summary.md"
    summary.write_text("")
    ran = Ran()
    for step in made["steps"]:
        name = step["name"]
        if not _wanted(step.get("if", "success()"), context, failed=bool(ran.failed)):
            continue
        if "uses" in step:
            given = {key: _filled(value, context) for key, value in step.get("with", {}).items()}
            ran.actions.append((step["uses"], given))
            continue
        words = {**made.get("env", {}), **step.get("env", {})}
        told = {key: str(_text(_filled(value, context))) for key, value in words.items()}
        output = temporary / "output"
        output.write_text("")
        where = folder / str(_filled(made["defaults"]["run"]["working-directory"], context))
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
            cwd=where,
            env={**environment, **told, "GITHUB_OUTPUT": str(output), "GITHUB_STEP_SUMMARY": str(summary),
                 "RUNNER_TEMP": str(temporary)},
            capture_output=True,
            text=True,
            timeout=STEP_TIMEOUT_S,
        )  # fmt: skip
        ran.codes[name], ran.said[name] = done.returncode, done.stdout + done.stderr
        if "id" in step:
            lines = [line.partition("=") for line in output.read_text().splitlines()]
            steps[step["id"]] = {"outputs": {key: value for key, _, value in lines}}
        if done.returncode:
            ran.failed.append(name)
    ran.outputs = {key: _filled(value, context) for key, value in made.get("outputs", {}).items()}
    ran.summary = summary.read_text()
    return ran


def clean_environment(**other: str) -> dict[str, str]:
    """What a step has on a fresh machine: nothing of this project's own environment."""
    kept = {key: os.environ[key] for key in ("HOME", "LANG", "TMPDIR") if key in os.environ}
    return {**kept, **other}


def _filled(value: Any, context: Mapping[str, Any]) -> Any:
    if not isinstance(value, str):
        return value
    whole = EXPRESSION.fullmatch(value)
    if whole:
        return _value(whole[1], context)
    return EXPRESSION.sub(lambda match: _text(_value(match[1], context)), value)


def _wanted(condition: str, context: Mapping[str, Any], *, failed: bool) -> bool:
    """A condition that names no function of the job's state is only asked while all went well."""
    if failed and "always()" not in condition:
        return False
    return bool(_value(condition, context))


def _value(expression: str, context: Mapping[str, Any]) -> Any:
    """The subset that the workflow uses: names, texts in quotes, ==, !=, && and ||."""
    names: dict[str, Any] = {}

    def known(match: re.Match[str]) -> str:
        text = match[0]
        if text.startswith("'"):
            return text
        names[f"v{len(names)}"] = True if text in ("always()", "success()") else _looked_up(text, context)
        return f"v{len(names) - 1}"

    python = NAME.sub(known, expression).replace("&&", " and ").replace("||", " or ")
    return eval(python, {"__builtins__": {}}, names)


def _looked_up(name: str, context: Mapping[str, Any]) -> Any:
    """What is not there is an empty text, as on GitHub."""
    found: Any = context
    for part in name.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return "" if found is None else found


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
