"""The client of an event loop: it never waits, and it has no thread.

What the loop watches
---------------------
The bell's pipe, and the supervisor's pidfd. The bell says how a sleeper arms and looks again (`ipc/bell.h`); here the
sleep is that of the loop in its selector, so the bell is armed whenever the loop may sleep, and a turn has this order:

    drain the pipe;  disarm;  read a batch, tell, send what waits;  arm;  look once more

If that last look finds something, the client writes a byte into its own pipe: the loop comes back to it after whatever
else is ready, and nothing is held up for longer than a batch takes. The same byte is the way back for all that asks for
a turn from elsewhere, and for a turn that a KeyboardInterrupt broke off: the pipe is watched level-triggered, so a turn
that is owed is never forgotten. At all times but in a turn the bell is armed, or there is a byte in the pipe.

What there is no room for waits in `mpworker.loopline`.

Only the loop's own thread comes here. A signal handler may cancel a future (the first Ctrl-C does), which therefore
only asks the loop to do it.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

from mpworker.aiofuture import LoopFuture, Wakes
from mpworker.aioline import ABOUT_TASKS, complete
from mpworker.client import ASK_AGAIN
from mpworker.errors import WrongEventLoop
from mpworker.ipc import codec, json
from mpworker.ipc._native import Bell, RingCorrupt
from mpworker.kept import Pending
from mpworker.launch import Supervisor
from mpworker.loopending import LoopEnding
from mpworker.loopline import LineClient
from mpworker.loopobserver import LoopObserver
from mpworker.observing import Observing
from mpworker.options import WorkerOptions
from mpworker.reader import _BATCH
from mpworker.starting import Beginning
from mpworker.steps import Answer, Message, Steps
from mpworker.waiting import wake_all

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

T = TypeVar("T")

_RETRY_SECONDS: Final = 0.05


def _no_more(*_: object) -> int:
    return 0


class LoopClient(LineClient):
    """One client of one supervisor, in one event loop.

    Args:
        options: As for `Client`.
        initializer: The same.
        initargs: The same.

    Attributes:
        loop: Which; None until the first call in one.
        due: Futures that have ended and have not been told.
        over_waiters: Whom to wake when the worker is over, and everything was told.
    """

    __slots__ = ("_cancels", "_soon", "due", "over_waiters")

    ending: LoopEnding
    make_future = LoopFuture
    may_wait = False
    _interrupts = True
    _observer_kind = LoopObserver
    _ending_kind = LoopEnding

    def __init__(self, options: WorkerOptions, observing: Observing, start: Beginning) -> None:
        self._cancels: deque[int] = deque()  # tasks whose futures were cancelled
        self._soon: deque[Callable[[], object]] = deque()  # that the loop is to call
        self.due: deque[LoopFuture] = deque()
        self.over_waiters: list[Wakes] = []
        super().__init__(options, observing, start)

    # ------------------------------------------------------------ the loop

    def check(self) -> asyncio.AbstractEventLoop:
        """See that this is the loop that the worker is used in; the first one is.

        Raises:
            WrongEventLoop: It is another one, or there is none.
            WorkerStopped: In a fork.
        """
        running = asyncio._get_running_loop()
        if running is not None and running is self.loop:
            return running
        self.refuse_if_forked()
        if running is None:
            raise WrongEventLoop("an AsyncProcessWorker is used inside a coroutine: no event loop runs in this thread")
        if self.loop is not None:
            raise WrongEventLoop(
                "this AsyncProcessWorker is used by another event loop, or was: one loop, and so one thread, can use it"
            )
        self.loop = running
        if not self._over:
            self._watch_supervisor(True)
        self._wake_leader()  # for what came before
        running.call_soon(self._call)
        return running

    def _watch_supervisor(self, on: bool) -> None:
        """Have the loop look at it, or no longer: before the numbers of its descriptors are another file's."""
        loop = self.loop
        if loop is None or loop.is_closed():
            return
        if on:
            loop.add_reader(self.supervisor.channel.fd, self._on_bell)
            loop.add_reader(self.supervisor.pidfd, self._on_death)
        else:
            loop.remove_reader(self.supervisor.channel.fd)
            loop.remove_reader(self.supervisor.pidfd)

    def stand_by(self, supervisor: Supervisor) -> None:
        """See `Client`."""
        self._watch_supervisor(False)
        super().stand_by(supervisor)
        self._watch_supervisor(True)
        self._wake_leader()

    def is_served_by(self, supervisor: Supervisor) -> None:
        """See `Client`. It is told by another thread, and so done when the loop comes to it."""
        loop = self.loop
        try:
            if loop is not None:
                loop.call_soon_threadsafe(self._is_served_in_loop, supervisor)
                return
        except RuntimeError:
            pass  # it is closed
        super().is_served_by(supervisor)

    def _is_served_in_loop(self, supervisor: Supervisor) -> None:
        self._watch_supervisor(False)
        super().is_served_by(supervisor)
        self._watch_supervisor(True)
        self._wake_leader()  # for what waits to be sent

    def call_soon(self, callback: Callable[[], object]) -> None:
        """Have the loop call this, once for all who ask before it has."""
        if callback in self._soon:
            return
        if self.loop is not None and self.loop.is_closed():
            callback()  # the worker is over, or will be so without anybody to tell
            return
        self._soon.append(callback)
        if self.loop is not None:
            self.loop.call_soon_threadsafe(self._call)

    def _call(self) -> None:
        while self._soon:
            callback = self._soon.popleft()
            callback()

    def _on_bell(self) -> None:
        bell = self._bell
        if bell is None:
            return
        armed = False
        try:
            bell.drain()
            armed = self._take_turn(bell)
        except Exception:
            armed = True  # at once it would fail in the same way, for want of memory perhaps; the loop logs it
            self.check().call_later(_RETRY_SECONDS, self._wake_leader)
            raise
        finally:
            if not armed:
                self._wake_leader()

    def _take_turn(self, bell: Bell) -> bool:
        """Take in and send what can be; True if the bell is armed, and nothing has come since."""
        bell.disarm()
        try:
            self._read_batch()
        except RingCorrupt:
            self._pop = _no_more
            self.supervisor.kill()  # its pidfd tells of that
            return True
        self._tell()
        if self.resending.chunks:
            self.resending.send_all()
        self._leave_line()
        bell.want_room(not self._flush())
        bell.arm()
        if not self._sees_any():
            return True
        bell.disarm()
        return False

    def _read_batch(self) -> None:
        """Settle one batch, so that nothing else in the loop waits for more than that."""
        if self._leader is None:  # else the interpreter ends, and its main thread reads
            self._leader = thread = threading.get_ident()
            try:
                self._read_some(thread)
            finally:
                self._leader = None

    def _sees_any(self) -> bool:
        return bool(self.due or self._inbox) or self._fill() > 0 or self.can_send()

    def _tell(self) -> None:
        due = self.due
        if self.loop is None or self.loop.is_closed():
            due.clear()  # nobody can be told any more
        for _ in range(min(len(due), _BATCH)):
            first = due[0]
            first.tell()
            if due and due[0] is first:  # no call between look and act
                del due[0]
        wake_all(self._any_event)

    def _on_death(self) -> None:
        if self._leader is not None:
            return  # as in `_read_batch`
        told = False
        self._leader = threading.get_ident()
        try:
            if not self._over:
                self._supervisor_died()
            self._leader = None
            self._tell()
            told = not self.due
        finally:
            self._leader = None
            if not told and self.loop is not None:
                self.loop.call_soon(self._on_death)  # there are more, or an interrupt came
        if told and self._over:
            for waiter in self.over_waiters:
                waiter.wake()

    def _look_for_death(self) -> None:
        """The loop watches for it, and tells of it."""
        if self.loop is None or self.loop.is_closed():
            super()._look_for_death()

    def _supervisor_died(self) -> None:
        super()._supervisor_died()
        if self._over:
            self._push_now = self._push_keeping  # the ring's memory goes; neither does anything

    def _fail_all(self, status: int, data: bytes) -> None:
        self._watch_supervisor(False)
        self._forget_what_waits()
        super()._fail_all(status, data)

    # ------------------------------------------------------------ cancel and ask

    def cancel_soon(self, key: int) -> None:
        """An awaited future was cancelled, perhaps by a signal handler: cancel its task in the loop."""
        loop = self.loop
        if loop is not None and not loop.is_closed() and key in self.pending:
            self._cancels.append(key)
            loop.call_soon(self._cancel_all_due)

    def _cancel_all_due(self) -> None:
        while self._cancels:
            self._cancel(self._cancels[0])
            self._cancels.popleft()  # last: an interrupt may come before, and a second cancel does no harm

    def _cancel(self, key: int) -> None:
        if key in self.pending and not self._drop_from_line(key) and not (self._exited or self._forked):
            if isinstance(self.pending, Pending):
                self.pending.cancelled.add(key)
            self.sending.send(codec.REQUEST, 0, 0, 0, 0, json.dumps({"verb": "cancel", "task": key}).encode())

    async def ask(self, message: Message, timeout: float | None = None) -> Answer:
        """Ask the supervisor; None when it is gone or does not answer in time.

        What it says of tasks is completed by what waits in line.
        """
        self._cancel_all_due()  # whoever has cancelled before he asks sees it
        verb = message["verb"]
        if verb == "cancel" and self._drop_from_line(message["task"]):
            return {"cancelled": True}
        if verb == "cancel_all":
            dropped = self._drop_all_from_line()
            answer = await self._ask(message, timeout)
            return None if answer is None else {"cancelled": dropped + answer["cancelled"]}
        if verb == "resume":
            self._drop_drains(message["names"])
        if verb not in ABOUT_TASKS or not self._in_line:
            return await self._ask(message, timeout)
        async with self._questions:  # one at a time, so that the line moves in between
            self._holds = True
            try:
                return complete(self, message, await self._ask(message, timeout))
            finally:
                self._holds = False
                self._leave_line()
                self._wake_leader()  # for what there was no room for

    async def _ask(self, message: Message, timeout: float | None) -> Answer:
        loop = self.check()
        by = None if timeout is None else loop.time() + timeout
        while True:
            reply = Wakes(loop)
            if self._exited:
                return None
            key = next(self._keys)
            self._replies[key] = reply  # type: ignore[assignment]  # settled in the same way
            try:
                data = json.dumps(message).encode()
                if message["verb"] != "drain" or not self._stand_in_line(key, message, data):
                    self.sending.send(codec.REQUEST, 0, key, 0, 0, data)
                await asyncio.wait([reply.future], timeout=None if by is None else max(0.0, by - loop.time()))
            finally:
                self._replies.pop(key, None)
                self.asked.pop(key, None)
            if reply.answer is not ASK_AGAIN:
                return None if reply.answer is None or "lost" in reply.answer else reply.answer

    async def carry_out_soon(self, steps: Steps[T]) -> T:
        """Ask what a verb asks, and return what it returns."""
        self.check()
        answer: Answer = None
        try:
            while True:
                answer = await self.ask(steps.send(answer))
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        finally:
            steps.close()

    async def until(self, test: Callable[[], bool], timeout: float | None) -> bool:
        """Wait until something is so that an event brings about; whether it is."""
        loop = self.check()
        deadline = None if timeout is None else loop.time() + timeout
        while not test():
            left = None if deadline is None else deadline - loop.time()
            if left is not None and left <= 0:
                return False
            waiter: Any = Wakes(loop)
            self._any_event.append(waiter)
            try:
                await asyncio.wait([waiter.future], timeout=left)
            finally:
                self._any_event.remove(waiter)
        return True

    # ------------------------------------------------------------ map

    def is_iterable(self, value: Any) -> bool:
        """Can `map` read it? An asynchronous iterable it can, too."""
        return hasattr(type(value), "__aiter__") or super().is_iterable(value)

    def map(self, *args: Any) -> "AsyncIterator[Any]":
        """The results of a `map`; for the arguments see `Mapping`."""
        from mpworker.aiomap import AsyncMapping

        return AsyncMapping(self, *args).results_as_they_come()
