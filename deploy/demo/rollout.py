"""What a person does in a swap, done by the demo: changes a context's file, rolls it out, types `ctxpipe space …`."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from typing import Any

import yaml

from deploy.demo.harness import Harness
from deploy.local.roles import Role

_EMBEDDING = re.compile(r"^embedding:\n(?:(?: .*)?\n)+", re.MULTILINE)
"""The section alone: the rest of the file stays as it is, sign by sign."""


def commit(harness: Harness, context: str, embedding: dict[str, Any]) -> dict[str, Any]:
    """Writes these parts into the `embedding` section of the context's file; gives back the section as it was."""
    path = harness.root / "contexts" / f"{context}.yaml"
    text = path.read_text()
    section = _EMBEDDING.search(text)
    assert section is not None, f"{path} has no section embedding"
    before: dict[str, Any] = yaml.safe_load(section[0])["embedding"]
    changed = yaml.safe_dump({"embedding": {**before, **embedding}}, sort_keys=False, allow_unicode=True)
    # The workers that run read it only when they start, as from a mounted file.
    path.write_text(text[: section.start()] + changed + text[section.end() :])
    return before


async def restart(worker: Role) -> None:
    """In order, as an orchestrator of containers would."""
    await asyncio.to_thread(worker.stop)
    worker.start()


async def space_command(harness: Harness, *words: str) -> tuple[int, dict[str, Any]]:
    """`ctxpipe space …`: its exit code and what it says."""
    command = [sys.executable, "-m", "pipeline.cli", "space", *words, "--json", "--config", str(harness.config_path)]
    with (harness.root / "logs" / "space.log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, stderr=log)
        output, _ = await process.communicate()
    return process.returncode or 0, json.loads(output or b"{}")
