"""How the client of an event loop comes to its end: what `mpworker.ending` does in the thread that calls, in a loop."""

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from mpworker.aiofuture import Wakes
from mpworker.ending import _ANSWER_SECONDS, _EXIT_SECONDS, _ORDERLY_SECONDS, _OVERTIME_SECONDS, RUNS, Ending

if TYPE_CHECKING:
    from mpworker.loopclient import LoopClient
    from mpworker.stopping import StopReport


class LoopEnding(Ending):
    """The end of one `LoopClient`; the arguments are those of `Ending`."""

    _client: "LoopClient"

    def __init__(self, client: "LoopClient") -> None:
        super().__init__(client)
        self._stopping: asyncio.Task[StopReport] | None = None  # kept, as its loop does not

    async def stop(self, timeout: float | None, cancel_queued: bool) -> "StopReport":
        """As `stop_graceful`."""
        client = self._client
        client.check()
        if not client._over:
            self._begin_to_end(timeout, cancel_queued)
        if not await self._until_over(self._time_left()):
            self._note_runs(await self._asked_for_runs())
            await self._end_all(self._time_left(_ORDERLY_SECONDS), _OVERTIME_SECONDS)
        return self._report(self._all_finished())

    def stop_soon(self, timeout: float | None, cancel_queued: bool) -> "StopReport":
        """As `begin_to_stop`; where the loop ends before, the exit handler goes on, in the same time."""
        client = self._client
        loop = client.check()
        if not client._over:
            self._begin_to_end(timeout, cancel_queued)
            if timeout is not None:
                self._stopping = loop.create_task(self.stop(timeout, cancel_queued))
        client.poll()
        client._wake_leader()  # what has ended is to be told
        return self._report(not client.pending)

    def _begin_to_end(self, timeout: float | None, cancel_queued: bool) -> None:
        """Say all that is to be said for a stop."""
        self._stop_within(timeout)
        if cancel_queued and not self.cancels:
            self._note_unwanted()
            self._cancel_line()
            self._client.tell({"verb": "cancel_unstarted"})
        self._say_drain()

    def _cancel_line(self) -> None:
        """Accept nothing more, and cancel what the supervisor does not know."""
        self.close_submit()
        self.cancels = True
        self._client._drop_all_from_line()

    async def _asked_for_runs(self) -> dict[str, Any] | None:
        return await self._client.ask(RUNS, _ANSWER_SECONDS) if self._client.recurs else None

    async def end_now(self) -> None:
        """As `stop_now`."""
        self._client.check()
        await self._end_all(_EXIT_SECONDS, None)

    async def _end_all(self, orderly: float | None, overtime: float | None) -> None:
        """End everything: see `Ending._end_now`."""
        client = self._client
        if client._over:
            return
        self.close_submit()
        self.asked = self._at_once = True
        client.supervisor.hang_up()  # which says the same as a request, and needs no room
        if not await self._until_over(orderly):
            client.supervisor.kill()
            await self._until_over(_EXIT_SECONDS if overtime is None else self._time_left(overtime))

    async def cancel_what_waits(self) -> None:
        """As `cancel_unstarted`."""
        self._client.check()
        self._cancel_line()
        await self._client.ask({"verb": "cancel_unstarted"})

    async def _until_over(self, timeout: float | None) -> bool:
        client = self._client
        waiter = Wakes(client.check())
        client.over_waiters.append(waiter)
        try:
            if not client._over or client.due:
                await asyncio.wait([waiter.future], timeout=timeout)
        finally:
            client.over_waiters.remove(waiter)
        return client._over

    def reap(self) -> None:
        """Nothing, as long as the loop does it, to which its results must be told."""
        loop = self._client.loop
        if loop is None or loop.is_closed():
            super().reap()

    def begin_to_drain(self) -> None:
        """As `Ending.ask_drain`, in the loop."""
        self._client.check()
        if not self._client._over:
            self._say_drain()

    def ask_drain(self) -> None:
        """The worker is dropped, in any thread: finish what was accepted and end."""
        loop = self._client.loop
        if self._client._forked or self._client._over:
            return
        if loop is None or loop.is_closed():
            self._say_drain()  # the next worker that is made reaps it, or the end of the interpreter
            return
        with contextlib.suppress(RuntimeError):  # the loop is closed just now
            loop.call_soon_threadsafe(self._say_drain)

    def _say_drain(self) -> bool:
        """As `Ending._say_drain`: where it must wait in line, nothing else may keep the line waiting."""
        if self._client._line:
            self._client.tell({"verb": "close"})
        return super()._say_drain()
