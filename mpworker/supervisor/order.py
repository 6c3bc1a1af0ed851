"""In which order tasks start, and which may not start now: queues, rates, pauses and drains."""

from mpworker.supervisor.effects import Effects
from mpworker.supervisor.lanes import rank_of
from mpworker.supervisor.lifecycle import SCHEDULED
from mpworker.supervisor.offers import Offers
from mpworker.supervisor.queues import DEFAULT_QUEUE, DEFAULT_RANK, Queues
from mpworker.supervisor.registry import CUT, Task, TaskOptions


class Order(Offers):
    """Offers in the order that a client asks for."""

    __slots__ = ("_closing",)

    def __init__(self, effects: Effects) -> None:
        super().__init__(effects)
        self._closing = False

    def options_known(self, options: TaskOptions) -> None:
        """Tasks with these options may come: in what order, that may be more than a FIFO can say."""
        if (options.queue, options.priority, -options.weight) != (DEFAULT_QUEUE, *DEFAULT_RANK):
            self._in_order()

    def configure_queue(
        self, name: str, weight: int, max_running: int | None, rate: float | None, burst: int, now: float
    ) -> None:
        """Make a queue, or change one; see `mpworker.queue.Queue`."""
        if self._queues is None and (name != DEFAULT_QUEUE or (max_running is None and rate is None)):
            # All that has come is of the default queue, in which nothing changes: the FIFO stands, and costs less.
            self._planned.configure(name, weight, max_running, rate, burst, now)
            return
        self._withdraw([name], cut=rate is not None)
        self._in_order().configure(name, weight, max_running, rate, burst, now)

    def limit_rate(self, rate: float | None, burst: int, now: float) -> None:
        """At most so many starts per second, and so many at once; None for no limit."""
        if rate is not None or self._queues is not None:
            self._withdraw(None, cut=rate is not None)
            self._in_order().limit_rate(rate, burst, now)

    def pause(self, names: list[str] | None) -> None:
        """Nothing of these queues (None: of all) starts from now on; what runs goes on. Not in a drain."""
        if self._closing:
            return
        queues = self._in_order()
        queues.pause(names, True)
        self._withdraw(names, cut=True)

    def drain_queues(self, names: list[str] | None) -> None:
        """What comes to these queues (None: to all) from now on does not start before `resume`. Not in a stop."""
        if self._closing:
            return
        queues = self._in_order()
        queues.drain(names)
        self._put = queues.put

    def are_drained(self, names: list[str] | None) -> bool:
        """Has all ended that was there before `drain_queues`, but for what is not due yet?"""
        queues = self._in_order()
        if not queues.is_drained(names):
            return False
        waiting = [*(task for _, task in self._pausing), *(task for _, task in self._scheduled)]
        return not any(
            task.state == SCHEDULED and task.attempts and (names is None or task.options.queue in names)
            for task in waiting
        )

    def resume(self, names: list[str] | None) -> None:
        """The end of `pause` and `drain_queues`."""
        queues = self._queues
        if queues is not None:
            queues.pause(names, False)
            queues.end_drain(names)
            if not queues.is_draining():
                self._put = queues.append

    def hold(self) -> None:
        """Nothing starts until `go_on`, whatever is paused or resumed meanwhile; what runs goes on.

        Not in a stop, which must come to its end.
        """
        if not self._closing:
            self._in_order().on_hold = True
            self._withdraw(None, cut=False)

    def go_on(self) -> None:
        """The end of `hold`."""
        if self._queues is not None:
            self._queues.on_hold = False

    def close(self) -> None:
        """What was accepted is finished: the end of every `pause`, `drain_queues` and `hold`."""
        self._closing = True
        self.go_on()
        if self._queues is not None:
            self.resume(None)
            self.resume(list(self._queues.states()))

    def limiter_waits(self) -> int:
        """Starts that a rate has delayed."""
        return self._queues.waits if self._queues is not None else 0

    def limit(self) -> tuple[float | None, int | None]:
        """Starts per second of all queues together, and at once; None where nothing limits them."""
        return self._queues.limit() if self._queues is not None else (None, None)

    def queue_states(self) -> dict[str, dict[str, object]]:
        """How each queue is, by name."""
        if self._queues is not None:
            return self._queues.states()
        states = self._planned.states()  # to look at the FIFO must not make it one of many
        offers = sum(len(seat.offers) for seat in self._seats.values())
        states[DEFAULT_QUEUE] |= {"queued": len(self._queue) - self._dead, "running": offers}
        return states

    def _let_overtake(self, queues: Queues) -> None:
        """What no child has begun goes behind what has come since and is to start before it."""
        for name, first in list(queues.overtaken.items()):
            offers = self._offers_of([name])
            self._return_unclaimed([task for task in offers if first < rank_of(task.options)])
            left = (rank_of(task.options) for task in offers if task.seat is not None)
            queues.offers_left(name, max(left, default=None))

    def _offers_of(self, names: list[str] | None) -> list[Task]:
        offers = (task for seat in self._seats.values() for task in seat.offers.values())
        return [task for task in offers if names is None or task.options.queue in names]

    def _withdraw(self, names: list[str] | None, cut: bool) -> None:
        """Offers of these queues (None: of all) that no child has claimed wait in line again.

        Args:
            names: Which queues.
            cut: So do the items of chunks that have not begun, though their chunk has.
        """
        queues = self._in_order()
        self._tell_claims(queues)
        offers = self._offers_of(names)
        self._return_unclaimed(offers)
        for task in offers:
            if cut and task.seat is not None and task.items and not task.halted:
                self._halt(task.seat, task, CUT)
        self._tell_claims(queues)
