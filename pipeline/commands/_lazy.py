"""Groups of commands that know each command's name and one line, and import none of the modules behind them."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping

import click


class LazyGroup(click.Group):
    """Imports the module of a command only when that command runs: --help and completion stay quick.

    `lines`: name → one line. The module of a command is `prefix` with its name, and has it as `command`.
    """

    lines: Mapping[str, str] = {}
    prefix = "pipeline.commands."
    heading = "Commands"

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name in self.lines if importlib.util.find_spec(self._module(name)) is not None]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        command = importlib.import_module(self._module(cmd_name)).command
        assert isinstance(command, click.Command), f"{self._module(cmd_name)}.command is not a click command"
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section(self.heading):
            formatter.write_dl([(name, self.lines[name]) for name in self.list_commands(ctx)])

    def _module(self, name: str) -> str:
        return self.prefix + name.replace("-", "_")
