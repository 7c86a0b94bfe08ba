"""Lookups in process, for `ctxpipe bench lookup`: run as `python -m … CONFIG KIND LOOP`, the loop as JSON."""

from __future__ import annotations

import sys
from typing import Any

import click
import msgspec
import uvloop

from deploy.demo.lookup_data import CONTEXT
from deploy.demo.lookup_loop import PATIENCE_MS, Loop, measure_loop


def main() -> None:
    """KIND `near`: only the times of what the near cache answered count."""
    config_path, kind, loop = sys.argv[1:]
    result = uvloop.run(_measure(config_path, kind, msgspec.json.decode(loop, type=Loop)))
    click.echo(msgspec.json.encode(result).decode())


async def _measure(config_path: str, kind: str, loop: Loop) -> dict[str, Any]:
    from pipeline.commands._services import open_services
    from pipeline.core.config import load
    from pipeline.lookup.options import LookupOptions

    options = LookupOptions(budget_ms=PATIENCE_MS)
    async with open_services(load(config_path)) as services:
        get = services.lookups.get

        async def ask(key: str) -> str:
            answer = await get(CONTEXT, key, options)
            return f"{answer.status}/{answer.rung}"

        return await measure_loop(loop, ask, of="fresh/near" if kind == "near" else None)


if __name__ == "__main__":
    main()
