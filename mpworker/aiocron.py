"""The verbs of `mpworker.recurring` in an event loop."""

from collections.abc import Callable
from datetime import tzinfo
from typing import TYPE_CHECKING, Any

from mpworker.recurring import Misfire, Overlap, asking_cron
from mpworker.task import Task

if TYPE_CHECKING:
    from mpworker.cron import CronRun, CronTask
    from mpworker.loopclient import LoopClient
    from mpworker.view import TaskView


class AsyncCronView:
    """The verb that goes by task options."""

    _client: "LoopClient"
    _view: "TaskView"

    async def register_cron_task(
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
        """Have a child call `task()` again and again, until the worker stops: see `ProcessWorker.register_cron_task`.

        Args:
            name: What it is called in all other verbs.
            spec: Such as `"30 2 * * MON-FRI"` or `"@every 1m30s"`.
            task: What is called, or a `Task`.
            tz: The time zone that the line goes by.
            overlap: Whether what is due while a run is unfinished is left out (`"skip"`) or waits (`"queue"`).
            misfire: Whether what was missed is left out (`"skip"`), or made up for `"once"`, or `"all"` of it.
            misfire_grace: Seconds by which a run may be late and is still no missed one.

        Raises:
            InvalidArgument: An argument has a wrong type.
            ConfigurationError: One is out of its bounds, or means nothing, or the name is taken.
            SerializationError: `task` cannot be pickled.
            WorkerStopped: The worker was stopped, or made before this process was forked.
            WrongEventLoop: The worker is in use by another event loop.

        Example:
            >>> import asyncio
            >>> from mpworker import AsyncProcessWorker
            >>> async def main():
            ...     async with AsyncProcessWorker(n=1) as w:
            ...         await w.register_cron_task("cleanup", "30 2 * * *", print, tz="Europe/Berlin")
            ...         return [task.next_at.strftime("%H:%M") for task in await w.cron_tasks()]
            >>> asyncio.run(main())
            ['02:30']
        """
        self._client.check()
        rules = {"overlap": overlap, "misfire": misfire, "misfire_grace": misfire_grace}
        await self._client.carry_out_soon(self._view._registering_cron(name, spec, task, tz, rules))


class AsyncCronWorker:
    """The verbs that are a worker's alone."""

    _client: "LoopClient"

    async def cron_tasks(self) -> "list[CronTask]":
        """The recurring tasks, in the order in which they were registered.

        Raises:
            WorkerStopped: The worker was stopped, or made before this process was forked.
            WrongEventLoop: The worker is in use by another event loop.
        """
        from mpworker import cron

        return cron.tasks_from(await self._ask_cron("list"))

    async def pause_cron_task(self, name: str) -> None:
        """Nothing of it is due until `resume_cron_task`: see `ProcessWorker.pause_cron_task`.

        Raises:
            TaskNotFound: No recurring task has this name.
            WrongEventLoop: The worker is in use by another event loop.
        """
        await self._ask_cron("pause", name)

    async def resume_cron_task(self, name: str) -> None:
        """Go on with the first time after now.

        Raises:
            TaskNotFound: No recurring task has this name.
            WrongEventLoop: The worker is in use by another event loop.
        """
        await self._ask_cron("resume", name)

    async def run_cron_task(self, name: str) -> bool:
        """Run it now, paused or not, besides its own times.

        Returns:
            True if it runs, or waits for the run before it; False if `overlap` leaves it out.

        Raises:
            TaskNotFound: No recurring task has this name.
            WrongEventLoop: The worker is in use by another event loop.
        """
        return bool((await self._ask_cron("run", name))["accepted"])

    async def remove_cron_task(self, name: str) -> None:
        """It is due no more, and its history is forgotten. A run that has begun goes on.

        Raises:
            TaskNotFound: No recurring task has this name.
            WrongEventLoop: The worker is in use by another event loop.
        """
        await self._ask_cron("remove", name)

    async def cron_history(self, name: str) -> "list[CronRun]":
        """Its latest runs, at most 100, from the oldest to the newest; the last one may be under way.

        Raises:
            TaskNotFound: No recurring task has this name.
            WrongEventLoop: The worker is in use by another event loop.
        """
        from mpworker import cron

        return cron.runs_from(name, self._client.prefix, await self._ask_cron("history", name))

    async def _ask_cron(self, op: str, name: str | None = None) -> dict[str, Any]:
        return await self._client.carry_out_soon(asking_cron(self._client, op, name))
