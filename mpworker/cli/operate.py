"""What an operator does with a supervisor that runs as a service: look at it, and steer it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mpworker.cli.errors import CommandError, ExitCode
from mpworker.connected import ConnectedWorker, connect
from mpworker.errors import ConfigurationError, ConnectError, MPWorkerError

__all__ = ["COMMANDS"]

_CONNECT_SECONDS = 5.0


def _socket_option(command: Any) -> Any:
    return click.option("--socket", metavar="PATH", help="Of the supervisor. [MPWORKER_SOCKET, or the usual places]")(
        command
    )


def _attached(socket: str | None) -> ConnectedWorker:
    try:
        return connect(socket, name="mpworker command", connect_timeout=_CONNECT_SECONDS, reconnect_timeout=0)
    except ConnectError as error:
        raise CommandError(str(error), ExitCode.UNREACHABLE) from error


def _carry_out(socket: str | None, act: Callable[[ConnectedWorker], Any]) -> Any:
    """Attach, do something, and detach."""
    with _attached(socket) as w:
        try:
            return act(w)
        except ConfigurationError:
            raise
        except MPWorkerError as error:
            raise CommandError(str(error), ExitCode.BROKEN_OFF) from error


def _described(w: ConnectedWorker) -> dict[str, Any]:
    answer = w._operate({"op": "describe"})
    answer["clients"] = [each for each in answer["clients"] if each["name"] != "mpworker command"]
    return answer


def _table(title: str, headings: Iterable[str], rows: Iterable[Iterable[Any]]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE, pad_edge=False)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*(escape("-" if each is None else str(each)) for each in row))
    return table


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    if value < 120:
        return f"{value:.1f} s"
    return f"{value / 60:.0f} min" if value < 7200 else f"{value / 3600:.1f} h"


def _quantile(latency: dict[str, Any], part: float) -> str:
    """Of a histogram with a bucket for each power of two: the upper bound of the bucket."""
    left = part * latency["count"]
    for bound, count in latency["buckets"]:
        left -= count
        if left <= 0:
            return f"{bound * 1e3:.3g} ms"
    return "-"


def _queues_table(told: dict[str, Any]) -> Table:
    headings = ("queue", "weight", "queued", "running", "most running", "rate", "")
    rows = (
        (name, each["weight"], each["queued"], each["running"], each["max_running"], each["rate"], _state(each))
        for name, each in told["queues"].items()
    )
    return _table("Queues", headings, rows)


def _state(queue: dict[str, Any]) -> str:
    return "paused" if queue["paused"] else "draining" if queue["draining"] else ""


def _children_table(told: dict[str, Any]) -> Table:
    rows = (
        (each["pid"], each["state"], each["client"], each["task"], _seconds(each.get("for")))
        for each in told["children"]
    )
    return _table("Children", ("pid", "state", "client", "task", "for"), rows)


def _clients_table(told: dict[str, Any]) -> Table:
    headings = ("client", "name", "pid", "user", "for", "unfinished", "completed", "not completed", "p50", "p95")
    rows = (
        (
            *(each[name] for name in ("client", "name", "pid", "uid")),
            _seconds(each["for"]),
            *(each[name] for name in ("unfinished", "completed", "not_completed")),
            *(_quantile(each["latency"], part) for part in (0.5, 0.95)),
        )
        for each in told["clients"]
    )
    return _table("Clients", headings, rows)


_TABLES = {"clients": _clients_table, "queues": _queues_table, "children": _children_table}


def _show(socket: str | None, as_json: bool, names: Iterable[str], head: bool) -> ExitCode:
    told = _carry_out(socket, _described)
    console = Console(highlight=False)
    if as_json or not console.is_terminal:
        shown = told if head else {name: told[name] for name in names}
        click.echo(json.dumps(shown, indent=1))
        return ExitCode.OK
    if head:
        state = "stopping" if told["stopping"] else "serving"
        working = sum(child["task"] is not None for child in told["children"])
        console.print(
            f"supervisor {told['pid']}, {state} for {_seconds(told['uptime'])}: "
            f"{working} of {told['n']} children at work, {len(told['clients'])} clients"
        )
    for name in names:
        console.print(_TABLES[name](told))
    return ExitCode.OK


def _look(name: str, tables: tuple[str, ...], head: bool, text: str) -> click.Command:
    """A command that shows something."""

    @click.command(name, help=f"{text}\n\nOn a terminal as tables, else as JSON.\n\nExample: mpworker {name}")
    @_socket_option
    @click.option("--json", "as_json", is_flag=True, help="JSON, on a terminal too.")
    def look(socket: str | None, as_json: bool) -> ExitCode:
        return _show(socket, as_json, tables, head)

    return look


def _steer(name: str, text: str, act: Callable[[ConnectedWorker, tuple[str, ...]], object]) -> click.Command:
    """A command about queues."""

    @click.command(name, help=f"{text}\n\nQUEUE is the name of one; none for all.\n\nExample: mpworker {name} mail")
    @_socket_option
    @click.argument("queue", nargs=-1)
    def steer(socket: str | None, queue: tuple[str, ...]) -> ExitCode:
        _carry_out(socket, lambda w: act(w, queue))
        return ExitCode.OK

    return steer


@click.command("scale")
@_socket_option
@click.argument("n", type=int)
def _scale(socket: str | None, n: int) -> ExitCode:
    """Have N children from now on, while tasks run.

    Example: mpworker scale 16
    """
    _carry_out(socket, lambda w: w.set_max_workers(n))
    return ExitCode.OK


@click.command("stop")
@_socket_option
@click.option("--now", is_flag=True, help="Cancel what runs, too.")
def _stop(socket: str | None, now: bool) -> ExitCode:
    """Have the supervisor take nothing more, finish what it has accepted, and end.

    Example: mpworker stop
    """
    _carry_out(socket, lambda w: w._operate({"op": "stop", "now": now}))
    return ExitCode.OK


@click.command("reload")
@_socket_option
@click.option("--json", "as_json", is_flag=True, help="What has changed, as JSON.")
def _reload(socket: str | None, as_json: bool) -> ExitCode:
    """Have the supervisor read its configuration again, and do from now on what it says.

    It is checked first: a wrong one is refused with the reason and exit code 78, and nothing changes. What can only be
    otherwise after a restart is named, and stays as it is.

    Example: mpworker reload
    """
    outcome = _carry_out(socket, lambda w: w._reload())
    if as_json:
        click.echo(json.dumps(outcome, indent=1))
    if "refused" in outcome:
        raise CommandError(f"nothing has changed: {outcome['refused']}", ExitCode.CONFIG)
    if not as_json:
        click.echo(f"changed: {', '.join(outcome['changed']) or 'nothing'}")
        if outcome["at_restart"]:
            click.echo(f"only after a restart: {', '.join(outcome['at_restart'])}")
    return ExitCode.OK


COMMANDS = (
    _look("status", ("clients", "queues", "children"), True, "Show a supervisor on one screen."),
    _look("clients", ("clients",), False, "Show the programs that are attached."),
    _look("queues", ("queues",), False, "Show the queues: what waits, what runs, what limits them."),
    _look("children", ("children",), False, "Show the children, and what each runs."),
    _steer("pause", "Start nothing more of a queue until it is resumed.", lambda w, names: w.pause(*names)),
    _steer("resume", "End a pause or a drain.", lambda w, names: w.resume(*names)),
    _steer(
        "drain",
        "Wait until all that a queue has taken so far has ended; what comes later waits until it is resumed.",
        lambda w, names: w.drain(*names),
    ),
    _scale,
    _reload,
    _stop,
)
