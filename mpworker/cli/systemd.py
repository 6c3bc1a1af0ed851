"""``mpworker systemd``: the unit files of a supervisor, for the interpreter that runs this."""

from __future__ import annotations

import click

from mpworker.cli.errors import CommandError, ExitCode
from mpworker.service import units

__all__ = ["systemd_command"]


@click.group("systemd")
def systemd_command() -> None:
    """The systemd units of a supervisor."""


@systemd_command.command("show")
@click.argument("names", nargs=-1)
def _show(names: tuple[str, ...]) -> ExitCode:
    """Print the units, or those that are named.

    Example: mpworker systemd show mpworker.service
    """
    texts = units.units()
    for name in names or tuple(texts):
        if name not in texts:
            raise click.UsageError(f"no unit {name!r}: there are {', '.join(texts)}")
        click.echo(f"# {name}\n{texts[name]}")
    return ExitCode.OK


@systemd_command.command("install")
@click.option("--folder", default=units.FOLDER, show_default=True, help="Where they are written.")
def _install(folder: str) -> ExitCode:
    """Write the units, and say what to do next. A file that says the same already is left as it is.

    Example: mpworker systemd install
    """
    try:
        changed = units.install(folder)
    except OSError as error:
        raise CommandError(f"{error.filename}: {error.strerror}", ExitCode.SYSTEM) from error
    for path in changed:
        click.echo(f"wrote {path}")
    click.echo("Now: systemctl daemon-reload && systemctl enable --now mpworker.socket  (or mpworker.service)")
    return ExitCode.OK
