"""The verbs of a worker for recurring tasks. What they need is loaded when one is called."""

from __future__ import annotations

from mpworker.checks import check_seconds
from mpworker.errors import ConfigurationError, InvalidArgument, TaskNotFound
from mpworker.options import TaskDefaults
from mpworker.steps import Steps, answered

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import tzinfo
    from typing import Any, Final, Literal

    from mpworker.client import Client
    from mpworker.cron import CronRun, CronTask
    from mpworker.task import Task

    Overlap = Literal["skip", "queue"]
    Misfire = Literal["skip", "once", "all"]

_OVERLAPS: Final = ("skip", "queue")
_MISFIRES: Final = ("skip", "once", "all")


class CronView:
    """The verb that goes by task options, and so belongs to each view of a worker."""

    _client: Client
    _defaults: TaskDefaults

    def register_cron_task(
        self,
        name: str,
        spec: str,
        task: Callable[[], object] | Task[Any],
        *,
        tz: str | tzinfo = "UTC",
        overlap: Overlap = "skip",
        misfire: Misfire = "once",
        misfire_grace: float = 60.0,
    ) -> None:
        """Have a child call `task()`, or carry out a `Task`, again and again, until the worker stops.

        Each run is a task with the options of this view: `w.options(timeout=60, retries=2).register_cron_task(...)`,
        or those that the `Task` says, whose `deadline` counts from the start of each run.
        How it ended is in `cron_history`, and in subscriptions; there is no future, and what `task` returns is
        dropped. It is pickled once, now.

        Fields are separated by spaces: minute, hour, day of the month, month and day of the week, with seconds before
        them if there are six. Each is a number, `*`, a range `1-5`, a list `1,3` or a step `*/15`; months and weekdays
        may be names; Sunday is 0 or 7. If neither day begins with a star, one that matches is enough. `L` is the last
        day of a month, `LW` its last Monday to Friday, `MON#2` its second Monday, `5L` its last Friday.

        Where clocks are changed: a line whose minute and hour do not begin with a star is due once for each of its
        times, in the first pass of an hour that comes twice, and at the end of an hour that is left out. Any other one
        follows the clock: it runs through both passes, and not at what is left out.

        Args:
            name: What it is called in all other verbs, at most 200 characters.
            spec: A line such as `"30 2 * * MON-FRI"`, `"@every 1m30s"` (from 10 ms to 366 days, counted from now), or
                one of `@hourly`, `@daily`, `@midnight`, `@weekly`, `@monthly`, `@yearly` and `@annually`.
            task: Called in a child, without arguments; or a `Task`, with arguments, and without an `id`, a `run_at`,
                an `idempotency_key` or a moment as `deadline`, since each run is a task of its own.
            tz: The time zone that the line goes by: a name such as `"Europe/Berlin"`, or a `zoneinfo.ZoneInfo`.
            overlap: What is due while a run is unfinished is left out (`"skip"`), or waits until that has ended
                (`"queue"`): one run, and others are left out.
            misfire: What was due while the machine slept, or the supervisor stood still, is left out (`"skip"`), is
                made up for by one run (`"once"`), or each by its own, one after the other, at most 100 (`"all"`).
            misfire_grace: Seconds by which a run may be late and is still no missed one.

        Raises:
            InvalidArgument: An argument has a wrong type.
            ConfigurationError: One is out of its bounds, the line means nothing or is never due, there is no such time
                zone, the name is taken, or there are 1,000 recurring tasks.
            SerializationError: `task` cannot be pickled.
            WorkerStopped: The worker was stopped, or made before this process was forked.

        Example:
            >>> from mpworker import ProcessWorker
            >>> with ProcessWorker(n=1) as w:
            ...     w.register_cron_task("cleanup", "30 2 * * *", print, tz="Europe/Berlin")
            ...     w.cron_tasks()[0].next_at.strftime("%H:%M")
            '02:30'
        """
        rules = {"overlap": overlap, "misfire": misfire, "misfire_grace": misfire_grace}
        self._client.carry_out(self._registering_cron(name, spec, task, tz, rules))

    def _registering_cron(
        self, name: str, spec: str, task: Callable[[], object] | Task[Any], tz: str | tzinfo, rules: dict[str, Any]
    ) -> Steps[None]:
        """The steps of `register_cron_task`."""
        import binascii

        from mpworker import cron
        from mpworker.child.cron import call
        from mpworker.functions import refuse_asynchronous
        from mpworker.ipc import payload
        from mpworker.task import Task, checked_metadata

        _check_name(name)
        if not isinstance(task, Task) and not callable(task):
            raise InvalidArgument(f"register_cron_task needs a callable without arguments, or a Task, not {task!r}")
        own = task.options_said() if isinstance(task, Task) else {}
        task = _each_run(task)
        refuse_asynchronous(task.fn)
        _check_choice("overlap", rules["overlap"], _OVERLAPS)
        _check_choice("misfire", rules["misfire"], _MISFIRES)
        rules["grace"] = check_seconds("misfire_grace", rules.pop("misfire_grace"), zero=True)
        due, zone = cron.read_spec(spec), cron.read_zone(tz)
        client = self._client
        client.refuse_if_closed()
        from functools import partial

        bound = partial(task.fn, *task.args, **task.kwargs) if task.args or task.kwargs else task.fn
        try:
            data, shares = payload.dumps_sharing((call, (bound,), {}))  # which are kept until the supervisor answers
        except payload.Unserializable as error:
            raise client.cannot_send(task.fn, task.args, task.kwargs, error) from error
        options, shared = client.option_table.say(self._defaults.but(**own))
        said = dict(shared or {}, name=task.name or name)
        if task.metadata:
            said["metadata"] = checked_metadata(task.metadata)
        client.recurs = True
        yield from asking_cron(
            client,
            "register",
            name,
            spec=spec,
            due=due,
            **zone,
            call=binascii.b2a_base64(client.sending.with_shares(data, shares), newline=False).decode(),
            shares=len(shares),
            options=options,
            said=said,
            deadline=task.deadline,
            rules=rules,
        )
        if client.fanout is not None:
            try:
                client.fanout.watch_all()
            except RuntimeError:
                pass  # no thread is left: then whoever takes results reads them


class CronWorker:
    """The verbs that are a worker's alone."""

    _client: Client

    def cron_tasks(self) -> list[CronTask]:
        """The recurring tasks, in the order in which they were registered.

        Raises:
            WorkerStopped: The worker was stopped, or made before this process was forked.

        Example:
            >>> from mpworker import ProcessWorker
            >>> with ProcessWorker(n=1) as w:
            ...     w.register_cron_task("beat", "@every 10s", print)
            ...     [(task.name, task.spec, task.runs) for task in w.cron_tasks()]
            [('beat', '@every 10s', 0)]
        """
        from mpworker import cron

        return cron.tasks_from(self._ask_cron("list"))

    def pause_cron_task(self, name: str) -> None:
        """Nothing of it is due until `resume_cron_task`.

        A run that has begun goes on; what waits behind it is left out.

        Raises:
            TaskNotFound: No recurring task has this name.

        Example:
            >>> from mpworker import ProcessWorker
            >>> with ProcessWorker(n=1) as w:
            ...     w.register_cron_task("beat", "@every 10s", print)
            ...     w.pause_cron_task("beat")
            ...     w.cron_tasks()[0].next_at is None
            True
        """
        self._ask_cron("pause", name)

    def resume_cron_task(self, name: str) -> None:
        """Go on with the first time after now: what was due meanwhile was not missed. Nothing if it is not paused.

        Raises:
            TaskNotFound: No recurring task has this name.

        Example:
            >>> from mpworker import ProcessWorker
            >>> with ProcessWorker(n=1) as w:
            ...     w.register_cron_task("beat", "@every 10s", print)
            ...     w.pause_cron_task("beat")
            ...     w.resume_cron_task("beat")
            ...     w.cron_tasks()[0].paused
            False
        """
        self._ask_cron("resume", name)

    def run_cron_task(self, name: str) -> bool:
        """Run it now, paused or not, besides its own times.

        Returns:
            True if it runs, or waits for the run before it; False if `overlap` leaves it out.

        Raises:
            TaskNotFound: No recurring task has this name.

        Example:
            >>> from mpworker import ProcessWorker
            >>> with ProcessWorker(n=1) as w:
            ...     w.register_cron_task("report", "@monthly", len, tz="Asia/Tokyo")
            ...     w.run_cron_task("report")
            True
        """
        return bool(self._ask_cron("run", name)["accepted"])

    def remove_cron_task(self, name: str) -> None:
        """It is due no more, and its history is forgotten. A run that has begun goes on.

        Raises:
            TaskNotFound: No recurring task has this name.

        Example:
            >>> from mpworker import ProcessWorker
            >>> with ProcessWorker(n=1) as w:
            ...     w.register_cron_task("beat", "@every 10s", print)
            ...     w.remove_cron_task("beat")
            ...     w.cron_tasks()
            []
        """
        self._ask_cron("remove", name)

    def cron_history(self, name: str) -> list[CronRun]:
        """Its latest runs, at most 100, from the oldest to the newest; the last one may be under way.

        Raises:
            TaskNotFound: No recurring task has this name.

        Example:
            >>> from mpworker import ProcessWorker
            >>> with ProcessWorker(n=1) as w:
            ...     w.register_cron_task("beat", "@every 10s", print)
            ...     w.cron_history("beat")
            []
        """
        from mpworker import cron

        return cron.runs_from(name, self._client.prefix, self._ask_cron("history", name))

    def _ask_cron(self, op: str, name: str | None = None) -> dict[str, Any]:
        return self._client.carry_out(asking_cron(self._client, op, name))


def _check_name(name: object) -> None:
    from mpworker.cron import NAME_MAX

    if not isinstance(name, str):
        raise InvalidArgument(f"the name of a cron task is a str, not {name!r}")
    if not 0 < len(name) <= NAME_MAX:
        raise ConfigurationError(f"the name of a cron task has 1 to {NAME_MAX} characters, not {len(name)}")


def _check_choice(option: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        kind = ConfigurationError if isinstance(value, str) else InvalidArgument
        raise kind(f"{option} must be one of {', '.join(map(repr, choices))}, not {value!r}")


def asking_cron(client: Client, op: str, name: str | None = None, **fields: Any) -> Steps[dict[str, Any]]:
    """Ask the supervisor.

    Raises:
        TaskNotFound: It knows no recurring task of this name.
        ConfigurationError: It has one already, or too many.
    """
    if op != "list":
        _check_name(name)
    message = {"verb": "cron", "op": op, "name": name, **fields}
    answer = yield from answered(client, message)
    error = answer.get("error")
    if not error:
        _note_standing(client, message)
    if error == "nobody":
        client.recurs = False
        raise ConfigurationError("with debug=True nobody keeps the time: nothing recurs")
    if error == "exists":
        raise ConfigurationError(f"a cron task {name!r} is registered already: remove_cron_task({name!r}) first")
    if error == "full":
        from mpworker.supervisor.timetable import ENTRIES_MAX

        raise ConfigurationError(f"a worker has at most {ENTRIES_MAX} cron tasks")
    if error == "unknown":
        names = ", ".join(map(repr, answer["names"])) + (", ..." if answer["more"] else "")
        raise TaskNotFound(f"no cron task is called {name!r}; there is {names or 'none at all'}")
    return answer


def _note_standing(client: Client, message: dict[str, Any]) -> None:
    """Have what recurs recur with another supervisor, too, if this one dies."""
    about, op = ("cron", message["name"]), message["op"]
    if op == "register":
        client.note_standing(about, message)
    elif op == "remove":
        client.note_standing(about)
    elif op in ("pause", "resume"):
        known = client.standing(about)[:1]
        client.note_standing(about, *known, *[message] if known and op == "pause" else [])


def _each_run(task: Callable[[], object] | Task[Any]) -> Task[Any]:
    """The task that each run is."""
    from datetime import datetime

    from mpworker.task import Task

    if not isinstance(task, Task):
        return Task(task)
    for name in ("id", "run_at", "idempotency_key"):
        if getattr(task, name) is not None:
            raise ConfigurationError(
                f"each run is a task of its own, so there can be no {name}={getattr(task, name)!r}"
            )
    if isinstance(task.deadline, datetime):
        raise ConfigurationError(f"deadline must be seconds from the start of each run, not {task.deadline!r}")
    return task
