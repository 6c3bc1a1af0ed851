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
"""

import itertools
import json
import threading
import weakref
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from mpworker.checks import check_int
from mpworker.errors import ConfigurationError, InvalidArgument
from mpworker.future import TaskFuture
from mpworker.ipc import codec
from mpworker.outcomes import FINAL_STATUSES, final_status
from mpworker.queues import check_queue_name
from mpworker.results import BLOCK, POLICIES, Buffered, Subscription, TaskResult

if TYPE_CHECKING:
    from mpworker.client import Client

BUFFER_MAX: Final = 1 << 24
_HOLD: Final = json.dumps({"verb": "hold"}).encode()
_GO_ON: Final = json.dumps({"verb": "go_on"}).encode()


class Fanout:
    """The subscriptions of one client.

    Args:
        client: Whose.

    Attributes:
        published: How many results have been offered to all of them.
        dropped: How many one of them had no room for, those of closed ones included.
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
        self._told: bool | None = False  # whether the supervisor holds, as far as that is known
        self._tells = 0

    # ------------------------------------------------------------ results

    def take_out(self, key: int, default: None) -> None:
        """Take what has ended out of `pending`, and offer it to the subscriptions."""
        self._log.extend(map(self._pop, (key,), (default,)))  # one native call: see the module's docstring
        self._offer_each()

    def _offer_each(self) -> None:
        log = self._log
        while log:
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
        self.tell_hold_for_sure()

    def watch(self, number: int) -> None:
        """Have the background thread read for it, as nobody else may."""
        if number not in self._watched and number in self._subscriptions:
            self._watched[number] = None
            self.client.background.watched += 1  # no call since the look: see `mpworker.reader`
        self.client.background.need()

    def _unwatch(self, number: int) -> None:
        if number in self._watched:
            del self._watched[number]
            self.client.background.watched -= 1  # no call since the look

    # ------------------------------------------------------------ holding up the pool

    def tell_hold(self) -> bool:
        """Tell the supervisor whether anything may start, if that has changed; False if there is no room to say it.

        Whoever has filled or emptied a subscription calls this, which looks again after each word, so the last one to
        look has seen what is so. Of two who speak at the same time the last one's word is noted; of one who was
        interrupted none is, and it is said again.
        """
        client = self.client
        while not client.is_fork():
            wanted = any(each.full for each in self._living())
            data = _HOLD if wanted else _GO_ON
            if self._told is wanted:
                return True
            self._told = None
            self._tells = mine = self._tells + 1
            if not client._push(codec.REQUEST, 0, 0, 0, 0, data):  # no call since the store
                return False
            if self._tells == mine:
                self._told = wanted
            client._ring()
        return True

    def tell_hold_for_sure(self) -> None:
        """The same; if there is no room, a thread waits for some. Who tells that there is too much just tries again."""
        if not self.tell_hold():
            try:
                threading.Thread(target=self._tell_when_there_is_room, name="mpworker-go-on", daemon=True).start()
            except RuntimeError:
                pass  # the interpreter is at its end and starts no thread; a stop holds nothing up

    def _tell_when_there_is_room(self) -> None:
        client = self.client
        room = client.when(lambda: client._fits(len(_GO_ON)) or client.is_over())
        while not self.tell_hold():
            client.wait_for(room, None, len(_GO_ON))


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
    if policy == BLOCK:
        # Else the pool would fill the event ring until somebody reads it, and only then be told to stop.
        client.fanout.watch(subscription._number)
    return subscription


def _several(name: str, values: Any) -> Iterable[Any]:
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise InvalidArgument(f"{name} must be several names, such as a list, or None, not {values!r}")
    return values


def _status(value: Any) -> str:
    if value not in FINAL_STATUSES:
        raise ConfigurationError(f"statuses must be of {', '.join(map(repr, FINAL_STATUSES))}, not {value!r}")
    return str.__str__(value)  # of an enumeration, too
