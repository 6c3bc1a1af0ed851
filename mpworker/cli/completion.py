"""What a shell needs to complete the command line."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from mpworker.cli.errors import ExitCode

__all__ = ["completion_command"]

_SHELLS = ("bash", "zsh", "fish")


@click.command("completion")
@click.argument("shell", type=click.Choice(_SHELLS))
@click.pass_context
def completion_command(context: click.Context, shell: str) -> ExitCode:
    """Print what has SHELL complete commands and options.

    Example: mpworker completion bash > /etc/bash_completion.d/mpworker
    """
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(context.find_root().command, {}, "mpworker", "_MPWORKER_COMPLETE").source())
    return ExitCode.OK
