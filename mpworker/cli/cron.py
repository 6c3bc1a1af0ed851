"""What an operator does with the recurring tasks of a supervisor that runs as a service."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import click

from mpworker.cli.attached import carry_out, socket_option
from mpworker.cli.errors import CommandError, ExitCode
from mpworker.cli.tables import table, terminal

__all__ = ["cron_command"]


def _client_option(command: Any) -> Any:
    return click.option("--client", metavar="NUMBER", type=int, help="Of this program alone: see `mpworker clients`.")(
        command
    )


@click.group("cron")
def cron_command() -> None:
    """See and steer the recurring tasks of the programs that are attached.

    Example: mpworker cron list
    """


@cron_command.command("list")
@socket_option
@_client_option
@click.option("--json", "as_json", is_flag=True, help="JSON, on a terminal too.")
def _list(socket: str | None, client: int | None, as_json: bool) -> ExitCode:
    """List them: on a terminal as a table, else as JSON.

    Example: mpworker cron list
    """
    told = carry_out(socket, lambda w: w._operate({"op": "cron", "do": "list", "client": client}))["tasks"]
    console = terminal(told, as_json)
    if console is None:
        return ExitCode.OK
    headings = ("name", "client", "spec", "tz", "next", "runs", "skipped", "missed", "")
    rows = (
        (
            *(each[key] for key in ("name", "client", "spec", "tz")),
            None if each["next_at"] is None else f"{datetime.fromtimestamp(each['next_at']):%Y-%m-%d %H:%M:%S}",
            *(each[key] for key in ("runs", "skipped", "missed")),
            ", ".join(state for state in ("paused", "running") if each[state]),
        )
        for each in told
    )
    console.print(table("Recurring tasks (next: local time)", headings, rows))
    return ExitCode.OK


def _steer(do: str, text: str) -> None:
    """A command about those of one name."""

    @cron_command.command(do, help=f"{text}\n\nExample: mpworker cron {do} cleanup")
    @socket_option
    @_client_option
    @click.argument("name")
    def steer(socket: str | None, client: int | None, name: str) -> ExitCode:
        answer = carry_out(socket, lambda w: w._operate({"op": "cron", "do": do, "name": name, "client": client}))
        if not answer["found"]:
            raise CommandError(f"nothing that recurs is called {name!r}", ExitCode.SOME_FAILED)
        if not answer["accepted"]:
            raise CommandError(
                f"a run of {name!r} is under way, and its overlap leaves this one out", ExitCode.SOME_FAILED
            )
        return ExitCode.OK


_steer("pause", "Have nothing of it be due until it is resumed; a run that has begun goes on.")
_steer("resume", "End its pause: it goes on with the first time after now.")
_steer("run", "Run it now, paused or not, besides its own times.")
