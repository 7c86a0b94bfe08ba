"""`ctxpipe up`: real servers on this machine, without Docker."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.commands._stack import say, show_servers, stack_options
from pipeline.core.errors import ConfigError


@click.command("up")
@click.option(
    "--with",
    "extra",
    multiple=True,
    type=click.Choice(["cassandra", "llm"]),
    help="A server beyond the usual three; llm is a tiny quantised model behind llama.cpp's server.",
)
@click.option("--fresh", is_flag=True, help="Empty the data of all servers first.")
@click.option("--port", "ports", multiple=True, metavar="SERVER=PORT", help="A wanted port, such as kafka=9092.")
@stack_options
def command(extra: tuple[str, ...], fresh: bool, ports: tuple[str, ...], directory: Path | None, as_json: bool) -> None:
    """Start Kafka, Postgres and Redis on free ports and wait until they answer.

    What already runs is left alone. Missing programs are installed when run as root on Debian; elsewhere one message
    says what is missing. The servers go on running until `ctxpipe down`.

    `--with llm` builds llama.cpp's server the first time, which takes minutes. An endpoint of `guard:` with `model:
    tiny` finds it without a url.
    """
    from deploy.local.stack import Stack

    wanted_ports = _ports(ports)
    servers = Stack(directory).up(with_=extra, fresh=fresh, ports=wanted_ports, say=say)
    show_servers(servers, as_json=as_json)


def _ports(texts: tuple[str, ...]) -> dict[str, int]:
    ports, mistakes = {}, []
    for text in texts:
        name, _, number = text.partition("=")
        if number.isascii() and number.isdigit() and 1 <= int(number) <= 65535:
            ports[name] = int(number)
        else:
            mistakes.append(f"--port {text}: expected SERVER=PORT with a port from 1 to 65535, such as kafka=9092.")
    if mistakes:
        raise ConfigError(mistakes)
    return ports
