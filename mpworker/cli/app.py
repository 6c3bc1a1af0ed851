"""The ``mpworker`` command: its sub-commands, and how whatever they raise becomes one line and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr

import click

from mpworker import __version__
from mpworker.cli import operate, tasks
from mpworker.cli.bench import bench_command
from mpworker.cli.completion import completion_command
from mpworker.cli.cron import cron_command
from mpworker.cli.doctor import doctor_command
from mpworker.cli.errors import CommandError, ExitCode, one_line
from mpworker.cli.map import map_command
from mpworker.cli.plan import plan_command
from mpworker.cli.serve import config_command, serve_command
from mpworker.cli.systemd import systemd_command
from mpworker.errors import ConfigurationError

__all__ = ["cli", "run"]


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, no_args_is_help=False)
@click.version_option(__version__, prog_name="mpworker", message="%(prog)s %(version)s")
def cli() -> None:
    """A process pool for CPU-bound Python that survives the death of its processes."""


cli.add_command(bench_command)
cli.add_command(completion_command)
cli.add_command(config_command)
cli.add_command(cron_command)
cli.add_command(doctor_command)
cli.add_command(map_command)
cli.add_command(plan_command)
cli.add_command(serve_command)
cli.add_command(systemd_command)
for each in (*operate.COMMANDS, *tasks.COMMANDS):
    cli.add_command(each)


def run(argv: Sequence[str], command: click.Command = cli, name: str = "mpworker") -> int:
    """Run the command line and return its exit code; an error is one line on stderr, never a traceback.

    Args:
        argv: The arguments after the program's name.
        command: What they are for.
        name: Of the program.

    Returns:
        One of `ExitCode`.
    """
    if sys.stderr is None:  # closed: nobody wants to read it
        with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere):
            return run(argv, command, name)
    try:
        # Not click's stand-alone mode: that one writes three lines for a mistyped option and exits 1 for Ctrl-C.
        code = command.main(args=list(argv), prog_name=name, standalone_mode=False)
    except (CommandError, ConfigurationError) as error:
        return _fail(one_line(error), getattr(error, "exit_code", ExitCode.USAGE))
    except click.UsageError as error:
        help_command = error.ctx.command_path if error.ctx else name
        return _fail(f"{one_line_of(error)} (see '{help_command} --help')", ExitCode.USAGE)
    except click.ClickException as error:
        return _fail(one_line_of(error), ExitCode.USAGE)
    except (KeyboardInterrupt, click.Abort):
        return _fail("interrupted", ExitCode.INTERRUPTED)
    return int(code or ExitCode.OK)


def one_line_of(error: click.ClickException) -> str:
    """Return click's own message for an error of usage, on one line."""
    return " ".join(error.format_message().split())


def _fail(message: str, code: int) -> int:
    print(f"mpworker: {message}", file=sys.stderr)
    return code
