"""The fan-out of results: every subscription of a client sees each task that ends, once.

Where a future is settled, `Reader.take_out` takes it out of what is pending. That is a plain `dict.pop` while nobody
has subscribed, and costs nothing more; from the first subscription on it is `Fanout.take_out`. A future is settled
before, so a subscription can neither take a result from it nor hold it up.

What may come in between is said in `mpworker.reader`: the same record may be settled twice, by two threads or after an
interrupt. So that each subscription still sees each result once, and in one order:

- A future is taken out and put at the end of `_log` by one native call. One thread alone gets it.
- The head of the log has a number. It is offered to each subscription, which looks at no number twice, and then taken
  out, if it is still the head; two threads may do that at the same time.
- Who is interrupted leaves it there, and its record in the reader's inbox, whoever settles which goes on with the log.

With `policy="block"` nothing is dropped and the pool is held up instead: while such a subscription is full the
supervisor starts nothing more of this client. It is told so by whoever fills it, and by whoever empties it that it may
go on. What has begun, or ended, by the time that it hears of it is still taken in.

Of a run of a recurring task nobody here has a future. While there is a subscription the supervisor announces each run,
those that are under way at first, and later tells how it ended; from the one to the other there is a future of it here,
which is not among what is pending: nobody waits for it. Announcements come in the order of the runs' numbers, so none
is taken in twice.
"""

import itertools
import threading
import weakref
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from mpworker.checks import check_int
from mpworker.ending import RUNS
from mpworker.errors import ConfigurationError, InvalidArgument
from mpworker.future import TaskFuture
from mpworker.ipc import json
from mpworker.outcomes import FINAL_STATUSES, LOST, final_status
from mpworker.queues import check_queue_name
from mpworker.results import BLOCK, POLICIES, Buffered, Subscription, TaskResult
from mpworker.words import Word

if TYPE_CHECKING:
    from mpworker.client import Client

BUFFER_MAX: Final = 1 << 24
_HOLD: Final = json.dumps({"verb": "hold"}).encode()
_GO_ON: Final = json.dumps({"verb": "go_on"}).encode()
_LISTEN: Final = json.dumps({"verb": "listen", "on": True}).encode()
_DO_NOT: Final = json.dumps({"verb": "listen", "on": False}).encode()


class Fanout:
    """The subscriptions of one client.

    Args:
        client: Whose.

    Attributes:
        published: How many results have been offered to all of them.
        dropped: How many one of them had no room for, those of closed ones included.
        left_out: How many runs of recurring tasks the supervisor has not told of, as nothing was read here.
        hold: Whether nothing shall start.
    """

    subscription: type[Buffered] = Subscription

    def __init__(self, client: "Client") -> None:
        self.client = client
        self.published = 0
        self.dropped = 0
        self._pop = client.pending.pop
        self._log: deque[TaskFuture[Any] | None] = deque()  # taken out, and not offered to everybody yet
        self._subscriptions: dict[int, weakref.ref[Buffered]] = {}
        self._numbers = itertools.count()
        self._watched: dict[int, None] = {}  # those for which the background thread reads
        self._runs: dict[int, TaskFuture[Any]] = {}  # of recurring tasks, that have not ended
        self._newest_run = 0
        self.left_out = 0
        self.hold = Word(client, self._is_full, _HOLD, _GO_ON)
        self._listens = Word(client, self._has_any, _LISTEN, _DO_NOT)

    # ------------------------------------------------------------ results

    def take_out(self, key: int, default: None) -> None:
        """Take what has ended out of `pending`, and offer it to the subscriptions."""
        self._log.extend(map(self._pop, (key,), (default,)))  # one native call: see the module's docstring
        self._offer_each()

    def run_begins(self, key: int, left_out: int, data: bytes) -> None:
        """A run of a recurring task is announced; it may be told twice, and late.

        Args:
            key: Its number.
            left_out: How many runs have not been told of so far.
            data: Its name and queue.
        """
        said = json.loads(data)
        future: TaskFuture[Any] = TaskFuture(self.client, key, said["name"])  # also in a loop: nobody awaits it
        future.queue = said["queue"]
        if key > self._newest_run:  # no call from here on
            self._newest_run = key
            self._runs[key] = future
            self.dropped += left_out - self.left_out
            self.left_out = left_out

    def run_ends(self, key: int, status: int, data: bytes) -> None:
        """A run that was announced has ended; it may be told twice, and late."""
        future = self._runs.get(key)
        if future is not None:
            future.settle(status, data)
        self._log.extend(map(self._runs.pop, (key,), (None,)))  # as in `take_out`
        self._offer_each()

    def all_runs_end(self, status: int, data: bytes) -> None:
        """The worker is over, and with it what runs."""
        for key in tuple(self._runs):
            self.run_ends(key, status, data)

    def begins_anew(self) -> None:
        """Another supervisor takes the place of one that has died: it knows nothing yet, and numbers its own runs."""
        self.all_runs_end(LOST, b"")
        self._newest_run = self.left_out = 0
        self.hold.told = self._listens.told = False

    def _offer_each(self) -> None:
        log = self._log
        while True:  # `while log` would look before the jump back, at which another thread may come in between
            if not log:
                break
            future, number = log[0], self.published + 1  # no call since the look
            # Not the part of a map, nor what another thread has taken out, nor what was looked up after its end.
            if isinstance(future, TaskFuture) and not future._retold:
                self._offer(future, number)
            if log and log[0] is future:
                self.published += 1
                del log[0]

    def _offer(self, future: TaskFuture[Any], number: int) -> None:
        result, queue, status = TaskResult(future), future.queue, final_status(future.status)
        for subscription in self._living():
            subscription.offer(number, result, queue, status)

    def _living(self) -> list[Buffered]:
        found = [reference() for reference in tuple(self._subscriptions.values())]
        return [subscription for subscription in found if subscription is not None]

    # ------------------------------------------------------------ subscriptions

    def add(self, subscription: Buffered) -> int:
        """A new one; its number."""
        number = next(self._numbers)
        self._subscriptions[number] = weakref.ref(subscription, lambda _: self._died(number))
        self.client.take_out = self.take_out
        return number

    def remove(self, number: int) -> None:
        """It is closed; nothing if it was before."""
        self._subscriptions.pop(number, None)
        if not self._subscriptions:
            self.client.take_out = self._pop  # no call since the look: who adds one does this afterwards
        if number in self._watched and not self.client.is_fork():
            self._unwatch(number)

    def _died(self, number: int) -> None:
        """It was dropped, wherever that was: nobody waits here, as somebody may hold anything."""
        self.remove(number)
        self.tell_for_sure()

    def watch(self, number: int) -> None:
        """Have the background thread read for it, as nobody else may."""
        if number not in self._watched and number in self._subscriptions:
            self._watched[number] = None
            self.client.background.watched += 1  # no call since the look: see `mpworker.reader`
        self.client.background.need()

    def watch_all(self) -> None:
        """Have it read for each that there is."""
        for number in tuple(self._subscriptions):
            self.watch(number)

    def _unwatch(self, number: int) -> None:
        if number in self._watched:
            del self._watched[number]
            self.client.background.watched -= 1  # no call since the look

    # ------------------------------------------------------------ what the supervisor is told

    def _is_full(self) -> bool:
        return any(each.full for each in self._living())

    def _has_any(self) -> bool:
        return bool(self._subscriptions)

    def tell(self) -> bool:
        """Tell the supervisor what has changed of the subscriptions; False if there is no room to say it."""
        return self.hold.tell() and self._listens.tell()

    def tell_for_sure(self) -> None:
        """The same; if there is no room, a thread waits for some. Who tells that there is too much just tries again."""
        if not self.tell():
            try:
                threading.Thread(target=self.tell_when_there_is_room, name="mpworker-go-on", daemon=True).start()
            except RuntimeError:
                pass  # the interpreter is at its end and starts no thread; a stop holds nothing up

    def tell_when_there_is_room(self) -> None:
        """The same, and wait for some here."""
        client = self.client
        room = client.when(lambda: client._fits(len(_DO_NOT)) or client.is_over())
        while not self.tell():
            client.wait_for(room, None, len(_DO_NOT))


def subscribe(
    client: "Client", buffer: Any, policy: Any, queues: Any, statuses: Any, kind: type[Fanout] = Fanout
) -> Any:
    """Check what `subscribe_results` was given, and subscribe.

    Args:
        client: To whose results.
        buffer: As for `ProcessWorker.subscribe_results`, like those that follow.
        policy: The same.
        queues: The same.
        statuses: The same.
        kind: The fan-out of such a client.
    """
    size = check_int("buffer", buffer, 1, BUFFER_MAX)
    if policy not in POLICIES:
        raise ConfigurationError(f"policy must be one of {', '.join(map(repr, POLICIES))}, not {policy!r}")
    named = None if queues is None else frozenset(map(check_queue_name, _several("queues", queues)))
    wanted = None if statuses is None else frozenset(map(_status, _several("statuses", statuses)))
    for name in named or ():
        client.queues.look_for(name)
    client.refuse_if_closed()
    made = kind(client)
    if client.fanout is None:
        client.fanout = made  # no call since the look
    subscription = client.fanout.subscription(client.fanout, size, policy, named, wanted)
    if policy == BLOCK or client.recurs:
        # Else the pool would fill the event ring until somebody reads it, and only then be told to stop; and of runs
        # that recur there is no end.
        client.fanout.watch(subscription._number)
    client.fanout.tell_when_there_is_room()
    if client.recurs and client.may_wait:
        client.request(RUNS)  # when that is answered, the supervisor knows who listens: no run ends unseen from here on
    return subscription


def _several(name: str, values: Any) -> Iterable[Any]:
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise InvalidArgument(f"{name} must be several names, such as a list, or None, not {values!r}")
    return values


def _status(value: Any) -> str:
    if value not in FINAL_STATUSES:
        raise ConfigurationError(f"statuses must be of {', '.join(map(repr, FINAL_STATUSES))}, not {value!r}")
    return str.__str__(value)  # of an enumeration, too
