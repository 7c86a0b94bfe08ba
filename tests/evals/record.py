"""`python -m tests.evals.record`: starts the models of guard.yaml and records what they say to the suite's questions.

Two scripted providers answer over HTTP, and the real quantised model behind llama.cpp's server, which is built where it
is missing. Options are handed on to `ctxpipe eval record`. The quantised model's answers to prompts of the gate, which
are longer than it can write, are kept in raw/real as they came.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import aiohttp

from pipeline.evaluation.models import Asked
from pipeline.evaluation.runner import run_suite
from pipeline.evaluation.suite import read_suite
from pipeline.guard.values import RawAnswer
from tests.evals.generate.degraded import REAL_ANSWERS
from tests.evals.models import LOCAL_PORT, listening
from tests.evals.scripted_model import completion, says

SUITE = Path(__file__).parent
_PROMPTS = "trace/late/*"


def gate_prompts(count: int) -> list[dict[str, Any]]:
    """What the gate asks of the first cases, as the local model would be asked."""
    bodies: list[dict[str, Any]] = []

    def source(asked: Asked) -> RawAnswer:
        bodies.append(dict(asked.body))
        said = says(list(asked.body["messages"]), asked.endpoint.name)
        return RawAnswer(status=200, headers={"content-type": "application/json"}, body=completion(asked.body, said))

    run_suite(read_suite(SUITE), only=[_PROMPTS], jobs=0, source=source)
    return [_for_local(body) for body in bodies[:count]]


async def record_real_answers(prompts: list[dict[str, Any]]) -> None:
    async with aiohttp.ClientSession() as session:
        for name, prompt in zip(REAL_ANSWERS, prompts, strict=True):
            url = f"http://127.0.0.1:{LOCAL_PORT}/v1/chat/completions"
            async with session.post(url, json=prompt) as answer:
                (SUITE / name).parent.mkdir(parents=True, exist_ok=True)
                (SUITE / name).write_bytes(await answer.read())


async def record(prompts: list[dict[str, Any]], options: list[str]) -> int:
    async with listening():
        await record_real_answers(prompts)
        words = [sys.executable, "-m", "pipeline.cli", "eval", "record", str(SUITE), *options]
        return await (await asyncio.create_subprocess_exec(*words)).wait()


def _for_local(body: dict[str, Any]) -> dict[str, Any]:
    schema = body["response_format"]["json_schema"]["schema"]
    return {**body, "model": "tiny", "response_format": {"type": "json_object", "schema": schema}}


if __name__ == "__main__":
    sys.exit(asyncio.run(record(gate_prompts(len(REAL_ANSWERS)), sys.argv[1:])))
