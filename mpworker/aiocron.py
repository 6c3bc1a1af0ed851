"""The verbs of `mpworker.recurring` in an event loop."""

from __future__ import annotations

from collections.abc import Callable
from datetime import tzinfo
from typing import TYPE_CHECKING, Any

from mpworker.aiodocs import like
from mpworker.recurring import CronView, CronWorker, asking_cron
from mpworker.task import Task

if TYPE_CHECKING:
    from mpworker.cron import CronRun, CronTask
    from mpworker.loopclient import LoopClient
    from mpworker.recurring import Misfire, Overlap
    from mpworker.view import TaskView


class AsyncCronView:
    """The verb that goes by task options."""

    _client: LoopClient
    _view: TaskView

    @like(CronView.register_cron_task)
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
        """As `ProcessWorker.register_cron_task`.

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

    _client: LoopClient

    @like(CronWorker.cron_tasks)
    async def cron_tasks(self) -> list[CronTask]:
        """As `ProcessWorker.cron_tasks`."""
        from mpworker import cron

        return cron.tasks_from(await self._ask_cron("list"))

    @like(CronWorker.pause_cron_task)
    async def pause_cron_task(self, name: str) -> None:
        """As `ProcessWorker.pause_cron_task`."""
        await self._ask_cron("pause", name)

    @like(CronWorker.resume_cron_task)
    async def resume_cron_task(self, name: str) -> None:
        """As `ProcessWorker.resume_cron_task`."""
        await self._ask_cron("resume", name)

    @like(CronWorker.run_cron_task)
    async def run_cron_task(self, name: str) -> bool:
        """As `ProcessWorker.run_cron_task`."""
        return bool((await self._ask_cron("run", name))["accepted"])

    @like(CronWorker.remove_cron_task)
    async def remove_cron_task(self, name: str) -> None:
        """As `ProcessWorker.remove_cron_task`."""
        await self._ask_cron("remove", name)

    @like(CronWorker.cron_history)
    async def cron_history(self, name: str) -> list[CronRun]:
        """As `ProcessWorker.cron_history`."""
        from mpworker import cron

        return cron.runs_from(name, self._client.prefix, await self._ask_cron("history", name))

    async def _ask_cron(self, op: str, name: str | None = None) -> dict[str, Any]:
        return await self._client.carry_out_soon(asking_cron(self._client, op, name))
