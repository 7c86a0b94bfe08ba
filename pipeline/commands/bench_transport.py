"""`ctxpipe bench transport`: how many records per second reach an agent."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click


@click.command()
@click.option("--records", default=200_000, show_default=True, type=click.IntRange(1_000))
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1, 50))
@click.option("--bootstrap-servers", default=None, help="A Kafka that runs; by default a temporary one is started.")
@click.option("--report", type=click.Path(dir_okay=False, path_type=Path), help="Write the figures to this file too.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object as the last line of standard output.")
def command(records: int, rounds: int, bootstrap_servers: str | None, report: Path | None, as_json: bool) -> None:
    """Records per second into an agent: stock Faust, ours, and bare aiokafka, in turns on one broker."""
    import asyncio
    import logging

    from pipeline.streams.measure import TransportLoad, measure_transport

    logging.basicConfig(level=logging.CRITICAL)
    with _broker(bootstrap_servers) as address:
        load = TransportLoad(records=records, rounds=rounds)
        figures = asyncio.run(measure_transport(address, load, lambda line: click.echo(line, err=True)))
    figures["environment"] = _environment()
    if report is not None:
        report.write_text(json.dumps(figures, indent=2) + "\n")
    if as_json:
        click.echo(json.dumps(figures))
        return
    for name, rate in figures["records_per_s"].items():
        click.echo(f"{name:>9}: {rate:>9,} records/s")
    click.echo(f"ours is {figures['ours_vs_stock']}x stock Faust, {figures['ours_vs_aiokafka']} of bare aiokafka")


@contextmanager
def _broker(given: str | None) -> Iterator[str]:
    """The given broker, or one of our own that ends with the measurement."""
    if given is not None:
        yield given
        return
    import tempfile

    from deploy.local import install
    from deploy.local.kafka import KafkaServer
    from deploy.local.processes import choose_port

    install.ensure(["kafka"])
    with tempfile.TemporaryDirectory(prefix="ctxpipe-bench-") as folder:
        server = KafkaServer(Path(folder) / "kafka", choose_port())
        click.echo("starting a Kafka for this measurement", err=True)
        server.start()
        try:
            yield server.address
        finally:
            server.kill()


def _environment() -> dict[str, Any]:
    import os
    import platform
    from importlib import metadata

    packages = {name: metadata.version(name) for name in ("faust-streaming", "aiokafka")}
    return {"cpus": os.cpu_count(), "python": platform.python_version(), "machine": platform.machine(), **packages}
