"""What an operator does with a supervisor that runs as a service: look at it, and steer it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

import click
from rich.table import Table

from mpworker.cli.attached import COMMAND_NAME, carry_out, socket_option
from mpworker.cli.errors import CommandError, ExitCode
from mpworker.cli.tables import printable, seconds, table, terminal
from mpworker.connected import ConnectedWorker
from mpworker.stacks import of_task

__all__ = ["COMMANDS"]


def _described(w: ConnectedWorker) -> dict[str, Any]:
    answer = w._operate({"op": "describe"})
    answer["clients"] = [each for each in answer["clients"] if each["name"] != COMMAND_NAME]
    return answer


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
    return table("Queues", headings, rows)


def _state(queue: dict[str, Any]) -> str:
    return "paused" if queue["paused"] else "draining" if queue["draining"] else ""


def _children_table(told: dict[str, Any]) -> Table:
    rows = (
        (*(each[name] for name in ("pid", "state", "client", "task", "name")), seconds(each.get("for")))
        for each in told["children"]
    )
    return table("Children", ("pid", "state", "client", "task", "name", "for"), rows)


def _clients_table(told: dict[str, Any]) -> Table:
    headings = ("client", "name", "pid", "user", "for", "unfinished", "completed", "not completed", "p50", "p95")
    rows = (
        (
            *(each[name] for name in ("client", "name", "pid", "uid")),
            seconds(each["for"]),
            *(each[name] for name in ("unfinished", "completed", "not_completed")),
            *(_quantile(each["latency"], part) for part in (0.5, 0.95)),
        )
        for each in told["clients"]
    )
    return table("Clients", headings, rows)


_TABLES = {"clients": _clients_table, "queues": _queues_table, "children": _children_table}


def _show(socket: str | None, as_json: bool, names: Iterable[str], head: bool) -> ExitCode:
    told = carry_out(socket, _described)
    console = terminal(told if head else {name: told[name] for name in names}, as_json)
    if console is None:
        return ExitCode.OK
    if head:
        state = "stopping" if told["stopping"] else "serving"
        working = sum(child["task"] is not None for child in told["children"])
        console.print(
            f"supervisor {told['pid']}, {state} for {seconds(told['uptime'])}: "
            f"{working} of {told['n']} children at work, {len(told['clients'])} clients"
        )
    for name in names:
        console.print(_TABLES[name](told))
    return ExitCode.OK


def _look(name: str, tables: tuple[str, ...], head: bool, text: str) -> click.Command:
    """A command that shows something."""

    @click.command(name, help=f"{text}\n\nOn a terminal as tables, else as JSON.\n\nExample: mpworker {name}")
    @socket_option
    @click.option("--json", "as_json", is_flag=True, help="JSON, on a terminal too.")
    def look(socket: str | None, as_json: bool) -> ExitCode:
        return _show(socket, as_json, tables, head)

    return look


def _steer(name: str, text: str, act: Callable[[ConnectedWorker, tuple[str, ...]], object]) -> click.Command:
    """A command about queues."""

    @click.command(name, help=f"{text}\n\nQUEUE is the name of one; none for all.\n\nExample: mpworker {name} mail")
    @socket_option
    @click.argument("queue", nargs=-1)
    def steer(socket: str | None, queue: tuple[str, ...]) -> ExitCode:
        carry_out(socket, lambda w: act(w, queue))
        return ExitCode.OK

    return steer


@click.command("scale")
@socket_option
@click.argument("n", type=int)
def _scale(socket: str | None, n: int) -> ExitCode:
    """Have N children from now on, while tasks run.

    Example: mpworker scale 16
    """
    carry_out(socket, lambda w: w.set_max_workers(n))
    return ExitCode.OK


@click.command("stop")
@socket_option
@click.option("--now", is_flag=True, help="Cancel what runs, too.")
def _stop(socket: str | None, now: bool) -> ExitCode:
    """Have the supervisor take nothing more, finish what it has accepted, and end.

    Example: mpworker stop
    """
    carry_out(socket, lambda w: w._operate({"op": "stop", "now": now}))
    return ExitCode.OK


@click.command("reload")
@socket_option
@click.option("--json", "as_json", is_flag=True, help="What has changed, as JSON.")
def _reload(socket: str | None, as_json: bool) -> ExitCode:
    """Have the supervisor read its configuration again, and do from now on what it says.

    It is checked first: a wrong one is refused with the reason and exit code 78, and nothing changes. What can only be
    otherwise after a restart is named, and stays as it is.

    Example: mpworker reload
    """
    outcome = carry_out(socket, lambda w: w._reload())
    if as_json:
        click.echo(json.dumps(outcome, indent=1))
    if "refused" in outcome:
        raise CommandError(f"nothing has changed: {outcome['refused']}", ExitCode.CONFIG)
    if not as_json:
        click.echo(f"changed: {', '.join(outcome['changed']) or 'nothing'}")
        if outcome["at_restart"]:
            click.echo(f"only after a restart: {', '.join(outcome['at_restart'])}")
    return ExitCode.OK


@click.command("stacks")
@socket_option
@click.option("--child", metavar="PID", type=int, help="Of this one alone.")
@click.option("--task", "task_id", metavar="ID", help="Of the child that runs this one.")
@click.option("--json", "as_json", is_flag=True, help="JSON.")
def _stacks(socket: str | None, child: int | None, task_id: str | None, as_json: bool) -> ExitCode:
    """Print where every child is now: the stack of what it runs, the latest call last.

    It is taken without the help of what runs, also of C code that takes no signal; a child that is stopped, or stuck in
    the kernel, has none. The lines of source are those that are found here.

    Example: mpworker stacks --child 4711
    """
    told = [
        {**each, "stack": of_task(each["stack"])}
        for each in carry_out(socket, lambda w: w._stacks())
        if child in (None, each["pid"]) and task_id in (None, each["task"])
    ]
    if as_json:
        click.echo(json.dumps(told, indent=1))
    for each in () if as_json else told:
        if each["task"] is None:
            click.echo(f"child {each['pid']}: runs nothing ({each['state']})")
        else:
            what = f"task {each['task']} ({each['name'] or 'without a name'}) of client {each['client']}"
            click.echo(printable(f"child {each['pid']}: {what}, for {seconds(each['for'])}"))
            click.echo(printable(each["stack"]) or "  no stack: it has written none\n", nl=False)
    if not told:
        what = f"no child runs task {task_id!r}" if task_id is not None else "there is no such child"
        raise CommandError(what, ExitCode.SOME_FAILED)
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
    _stacks,
    _reload,
    _stop,
)
