"""What an operator does with the tasks of a supervisor that runs as a service: find, cancel and submit them."""

from __future__ import annotations

import json
from typing import Any

import click

from mpworker.cli.attached import attached, carry_out, socket_option
from mpworker.cli.errors import CommandError, ExitCode, one_line
from mpworker.cli.item import Failed, apply_to_arguments
from mpworker.cli.tables import printable, seconds, table, terminal
from mpworker.errors import ConfigurationError
from mpworker.ipc.codec import LISTED_MAX
from mpworker.task import Task, TaskStatus

__all__ = ["COMMANDS"]

_LISTED = 50


@click.command("tasks")
@socket_option
@click.option("--status", type=click.Choice([each.value for each in TaskStatus]), help="Of this status alone.")
@click.option("--queue", metavar="NAME", help="In this queue alone.")
@click.option("--name", metavar="NAME", help="Of this name alone: that of the function, if it was given no other.")
@click.option("--client", metavar="NUMBER", type=int, help="Of this program alone: see `mpworker clients`.")
@click.option(
    "--limit", type=click.IntRange(1, LISTED_MAX), default=_LISTED, show_default=True, help="So many at the most."
)
@click.option("--json", "as_json", is_flag=True, help="JSON, on a terminal too.")
def _tasks(
    socket: str | None,
    status: str | None,
    queue: str | None,
    name: str | None,
    client: int | None,
    limit: int,
    as_json: bool,
) -> ExitCode:
    """List the tasks of all programs that are attached.

    Those that have not ended come first, in the order in which they came, then those that are remembered, the newest
    first. The items of a `map` are not among them. On a terminal as a table, else as JSON.

    Example: mpworker tasks --status running
    """
    asked = {"op": "tasks", "status": status, "queue": queue, "name": name, "client": client, "limit": limit}
    told = carry_out(socket, lambda w: w._operate(asked))["tasks"]
    console = terminal(told, as_json)
    if console is None:
        return ExitCode.OK
    headings = ("task", "name", "client", "queue", "priority", "status", "attempt", "came", "runs or ran")
    rows = (
        (
            *(each[key] for key in ("task", "name", "client", "queue", "priority", "status")),
            len(each["attempts"]) or None,
            f"{seconds(each['since'])} ago",
            seconds(each["for"]),
        )
        for each in told
    )
    console.print(table("Tasks", headings, rows))
    if len(told) == limit:
        console.print(f"the first {limit}: more with --limit")
    return ExitCode.OK


@click.command("task")
@socket_option
@click.argument("task_id", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="JSON, on a terminal too.")
def _task(socket: str | None, task_id: str, as_json: bool) -> ExitCode:
    """Show a task: where it is, and each of its attempts.

    An id that its users have given may be that of a task of several programs: each is shown. The exit code is 1 if
    there is none, or it has ended and is no longer remembered.

    Example: mpworker task 3fa9c2d1-17
    """
    told = carry_out(socket, lambda w: w._operate({"op": "task", "id": task_id}))["tasks"]
    if not told:
        raise _not_found(task_id)
    console = terminal(told, as_json)
    if console is None:
        return ExitCode.OK
    for each in told:
        console.print(printable(_screen(each)), markup=False)
        if each["attempts"]:
            rows = (
                (
                    *(number, attempt["status"], attempt["pid"], attempt["cause"] or None),
                    seconds(attempt["began_ago"] if attempt["took"] is None else attempt["took"]),
                )
                for number, attempt in enumerate(each["attempts"], start=1)
            )
            console.print(table("Attempts", ("attempt", "status", "pid", "cause", "took"), rows))
    return ExitCode.OK


def _screen(told: dict[str, Any]) -> str:
    """What there is to say of a task beside its attempts."""
    lines = [
        f"task {told['task']}, {told['name'] or 'without a name'}: {told['status']}",
        f"of client {told['client']}, queue {told['queue']}, priority {told['priority']}",
        f"came {seconds(told['since'])} ago",
    ]
    for key, what in (("due_in", "to be queued"), ("deadline_in", "deadline")):
        at = told[key]
        if at is not None:
            lines.append(f"{what} in {seconds(at)}" if at >= 0 else f"{what} {seconds(-at)} ago")
    return "\n".join(lines)


def _not_found(task_id: str) -> CommandError:
    return CommandError(
        f"no task has the id {task_id!r}, or it has ended and is no longer remembered", ExitCode.SOME_FAILED
    )


@click.command("cancel")
@socket_option
@click.argument("task_ids", metavar="ID...", nargs=-1, required=True)
def _cancel(socket: str | None, task_ids: tuple[str, ...]) -> ExitCode:
    """Cancel tasks, whosever they are: what has not begun never begins, what runs is interrupted.

    Whoever has submitted one sees it end cancelled, and the log has a line for each. The exit code is 1 if there is no
    such task, or it had ended.

    Example: mpworker cancel 3fa9c2d1-17
    """

    def cancel_each(w: Any) -> list[tuple[str, dict[str, int]]]:
        return [(each, w._operate({"op": "cancel", "id": each})) for each in task_ids]

    code = ExitCode.OK
    for task_id, answer in carry_out(socket, cancel_each):
        if not answer["found"]:
            click.echo(f"mpworker: {_not_found(task_id)}", err=True)
        else:
            click.echo(f"{task_id}: {'cancelled' if answer['cancelled'] else 'it had ended'}")
        if not answer["cancelled"]:
            code = ExitCode.SOME_FAILED
    return code


def _read(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


@click.command("submit")
@socket_option
@click.option("--id", "task_id", metavar="ID", help="Of the task; else it is given one.")
@click.option("--name", metavar="NAME", help="For those who look; else PACKAGE.MODULE:FUNCTION.")
@click.option("--queue", metavar="NAME", default="default", show_default=True, help="Where it waits.")
@click.option("--priority", type=int, default=0, show_default=True, help="The lowest goes first.")
@click.option("--timeout", metavar="SECONDS", type=float, help="That an attempt may take.")
@click.option("--retries", metavar="N", type=int, default=0, show_default=True, help="Further attempts.")
@click.option("-k", "--keyword", metavar="NAME=VALUE", multiple=True, help="A keyword argument; may be repeated.")
@click.argument("target", metavar="PACKAGE.MODULE:FUNCTION")
@click.argument("arguments", metavar="[ARGUMENT]...", nargs=-1)
def _submit(
    socket: str | None,
    task_id: str | None,
    name: str | None,
    queue: str,
    priority: int,
    timeout: float | None,
    retries: int,
    keyword: tuple[str, ...],
    target: str,
    arguments: tuple[str, ...],
) -> ExitCode:
    """Have a child of the supervisor call a function, and print what it returns, as JSON.

    An argument is read as JSON where it is some, and else is text: 3 is a number, abc and "3" are text. One that begins
    with a dash stands behind "--". The function is found as the children find it. Ctrl-C cancels the task. The exit
    code is 1 if it fails.

    Example: mpworker submit math:gcd 12 18
    """
    keywords = {}
    for each in keyword:
        key, equals, value = each.partition("=")
        if not (equals and key.isidentifier()):
            raise CommandError(f"--keyword {each!r} must be NAME=VALUE")
        keywords[key] = _read(value)
    with attached(socket, "mpworker submit") as w:
        try:
            task: Task[str | Failed] = Task(
                apply_to_arguments,
                (target, [_read(each) for each in arguments], keywords),
                id=task_id,
                name=name or target[:200],
                queue=queue,
                priority=priority,
                timeout=timeout,
                retries=retries,
            )
            outcome = w.register_task(task).result()
        except (ConfigurationError, CommandError):
            raise  # CommandError: the child has found no such function
        except Exception as error:
            raise CommandError(f"{type(error).__name__}: {one_line(error)}", ExitCode.SOME_FAILED) from error
    if isinstance(outcome, Failed):
        raise CommandError(f"{outcome.error}: {outcome.message}", ExitCode.SOME_FAILED)
    click.echo(outcome)
    return ExitCode.OK


COMMANDS = (_tasks, _task, _cancel, _submit)
