"""`python -m pipeline.guard.faults`: the scripted server by itself, for whoever calls models in another language."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import tempfile
from pathlib import Path

from pipeline.core.errors import CtxpipeError
from pipeline.guard.faults.answers import FAULTS
from pipeline.guard.faults.certificates import expired_certificate, server_context
from pipeline.guard.faults.server import CONTENT, FaultServer


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m pipeline.guard.faults", description=__doc__)
    parser.add_argument("--port", type=int, default=8089, help="0 takes a free one")
    parser.add_argument("--content", default=CONTENT, help="what valid answers say")
    parser.add_argument("--delay", type=float, default=0.1, help="seconds that `slow` takes")
    parser.add_argument("--expired-tls", action="store_true", help="HTTPS, with a certificate whose time is over")
    parser.add_argument("--list", action="store_true", help="names of the faults")
    asked = parser.parse_args()
    if asked.list:
        sys.stdout.write("\n".join(FAULTS) + "\n")
        return 0
    try:
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(_serve(asked))
    except (CtxpipeError, OSError) as error:
        sys.stderr.write(f"Error: {error}\n")
        return 3
    return 0


async def _serve(asked: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        tls = server_context(*expired_certificate(Path(folder))) if asked.expired_tls else None
        async with FaultServer(asked.content, asked.delay, port=asked.port, tls=tls) as server:
            sys.stdout.write(f"{server.url('valid')}\nwrite faults in the place of 'valid', commas between them\n")
            sys.stdout.flush()
            await asyncio.Event().wait()


if __name__ == "__main__":
    sys.exit(main())
