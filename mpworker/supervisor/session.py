"""One client, as the loop serves it: what it sends is taken in here, and what it asks is answered."""

from __future__ import annotations

import time

from mpworker.ipc import codec
from mpworker.ipc.codec import SUBMIT, Record
from mpworker.ipc.ring import RingCorrupt
from mpworker.supervisor.describe import Describer
from mpworker.supervisor.latency import Latency
from mpworker.supervisor.registry import DetailedTask, Task
from mpworker.supervisor.requests import Requests

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from mpworker.supervisor.cron import CronDesk
    from mpworker.supervisor.fanout import ClientPort
    from mpworker.supervisor.scheduler import Scheduler
    from mpworker.supervisor.serving import Serving
    from mpworker.supervisor.watching import Watch

_BATCH: Final = 256


class Session:
    """One client.

    Args:
        loop: Which serves it.
        port: Its own.
        scheduler: That which knows its tasks, or so much of it as is this client's.
        watch: Looks on for it.

    Attributes:
        submitted: What a task is handed to that has nothing more to say than its options.
        requests: What it has asked.
        cron: Its recurring tasks; None before it asks for one.
        listens: It is to be told of runs of these.
        describer: Tells it of tasks.
        latency: How long they took.
    """

    __slots__ = (
        *("_base", "_batch", "_watch", "cron", "describer", "latency", "listens"),
        *("loop", "port", "requests", "scheduler", "submitted"),
    )

    def __init__(self, loop: Serving, port: ClientPort, scheduler: Scheduler, watch: Watch) -> None:
        self.loop = loop
        self._watch = watch
        self.port = port
        self.scheduler = scheduler
        self._base = port.base
        self._batch: list[Record] = []
        self.submitted = scheduler.submitted
        self.requests = Requests(self)
        self.cron: CronDesk | None = None
        self.listens = False
        self.describer = Describer(scheduler, port.ids)
        self.latency = Latency()

    def read(self) -> int:
        """Take in a batch of what has come; how many records that were."""
        batch = self._batch
        count = 1
        try:
            count = self.port.channel.inbound.pop(batch, _BATCH)
            if not count:
                return 0
            port = self.port
            port.channel.peer_bell.ring_room()
            port.now_ns = time.monotonic_ns()
            functions, options, base, now_ns = port.functions, port.options, self._base, port.now_ns
            tasks: list[Task] = []
            for kind, flags, a, b, c, data in batch:
                if kind == SUBMIT and not flags:  # nearly all of many: as `_take_in` does, without two calls for each
                    tasks.append(Task(base + a, functions[b] if b else None, options[c], data, 0, 0, now_ns))
                    continue
                if tasks:
                    self.scheduler.submitted_all(tasks)
                    tasks = []
                self._take_in(kind, flags, a, b, c, data)
            self.scheduler.submitted_all(tasks)
        except (RingCorrupt, KeyError, ValueError, TypeError):
            self.loop.condemned(self)  # its memory is corrupt, or it is none of ours
        batch.clear()
        return count

    def _take_in(self, kind: int, flags: int, a: int, b: int, c: int, data: bytes) -> None:
        port, scheduler = self.port, self.scheduler
        if flags & codec.FRAGMENTED:
            data = port.whole((kind, flags, a, b, c, data))
        if flags & codec.ARENA:
            data = port.blocks.held(data)
        if kind == codec.SUBMIT and not flags & codec.DETAILED:
            self.submitted(port.task(flags & codec.ARENA, a, b, c, data))
        elif kind == codec.CHUNK and not flags & codec.DETAILED:
            self.submitted(port.chunk(flags, a, b, c, data))
        elif kind in (codec.SUBMIT, codec.CHUNK):
            self._submitted_with_details(port.detailed(kind, flags, a, b, c, data), flags, data)
        elif kind == codec.OPTIONS:
            scheduler.options_known(port.note_options(a, data))
        elif kind == codec.REQUEST:
            self.requests.take(a, data)
        elif kind == codec.FREE:
            port.forget_block(a, bool(b))
        elif kind == codec.SHARE:
            port.blocks.shares.place((a, b, c))
        elif kind == codec.UNSHARE:
            port.blocks.shares.let_go(a)
        else:
            forgotten = port.note(kind, flags, a, b, data)
            if forgotten is not None:
                self.loop.world.forget(forgotten)

    def _submitted_with_details(self, task: DetailedTask, flags: int, data: bytes) -> None:
        if flags & codec.AGAIN:
            self.submitted_again(task, data)
        else:
            self.scheduler.submitted_with_details(task)

    def submitted_again(self, task: DetailedTask, data: bytes) -> None:
        """A task has come that a supervisor had accepted which has died.

        Raises:
            ValueError: The only client of a supervisor dies with it, and sends none.
        """
        raise ValueError("no supervisor had accepted that")

    def end_turn(self, now: float) -> None:
        """Tell what this turn of the loop has brought."""
        port = self.port
        if port.ended_ns:
            self.latency.take(port.ended_ns, int(now * 1e9))
            port.ended_ns.clear()
        self.requests.answer_later_ones()
        if port.outbox.waiting or port.blocks.freed:
            port.flush_client()

    def ring(self) -> None:
        """Wake the client if it was sent something."""
        port = self.port
        if port.sent:
            port.sent = False
            port.channel.peer_bell.ring()

    def has_left(self) -> bool:
        """Is there something that the next turn could do, though nothing comes?"""
        port = self.port
        return bool(port.outbox.waiting or port.blocks.freed or port.blocks.shares.unneeded)

    def is_finished(self) -> bool:
        """Has all that was accepted an outcome, and has the client been told?"""
        port = self.port
        if self.scheduler.unfinished() or port.splits or port.outbox.waiting:
            return False
        return self.cron is None or not self.cron.unfinished()

    def may_steer(self) -> None:
        """It asks for what concerns all clients.

        Raises:
            ValueError: It may not.
        """

    def tell_of_tasks(self, on: bool) -> None:
        """The client watches from now on, or no longer."""
        self._watch.tell(on, self.scheduler)
        self.submitted = self.scheduler.submitted_watched if on else self.scheduler.submitted
