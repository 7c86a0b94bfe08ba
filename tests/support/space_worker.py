"""A process that embeds for one space, as `pipeline.streams.process --space` is, but tells sooner how far it is:
`python -m tests.support.space_worker CONFIG CONTEXT SPACE`."""

from __future__ import annotations

import asyncio
import os
import sys
from functools import partial

from pipeline.core.logging import configure
from pipeline.streams import space_compose
from pipeline.streams.process import run
from pipeline.streams.worker_app import StreamSettings


def main(config: str, context: str, space: str) -> None:
    configure()
    shorter = partial(StreamSettings, commit_interval_s=0.2)
    space_compose.StreamSettings = shorter  # type: ignore[assignment, misc]
    asyncio.run(run(space_compose.space_app_of_file(config, context, 1, space)))


if __name__ == "__main__":
    main(*sys.argv[1:])
    os._exit(0)
