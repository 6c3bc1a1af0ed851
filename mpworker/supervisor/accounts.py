"""One scheduler for several clients: what is of each of them, and what each may see and do of it.

The scheduler knows tasks by numbers that begin with their client's (`mpworker.supervisor.fair.client_of`). An `Account`
is the scheduler as one client sees it: what it asks and cancels is among its own tasks, and counts and memory are its
own. What concerns all clients, the children, queues and limits, is for whoever runs the supervisor.
"""

from __future__ import annotations

from mpworker.containers import Tally
from mpworker.supervisor.effects import CRASHED, OK
from mpworker.supervisor.ends import HISTORY_BYTES_MAX, HISTORY_MAX
from mpworker.supervisor.fair import FairQueues, client_of
from mpworker.supervisor.history import History
from mpworker.supervisor.lifecycle import OFFER, SCHEDULED
from mpworker.supervisor.recycling import Recycling
from mpworker.supervisor.registry import CLOSING, CONTEXT_SHIFT, Attempt, DetailedTask, Seat, Task, TaskOptions

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from mpworker.supervisor.history import Ended, Outcome


class Histories:
    """What is remembered of the tasks of each client, to the scheduler one `History`.

    Attributes:
        any_results: Is some task's result kept?
    """

    def __init__(self) -> None:
        self._each: dict[int, Account] = {}
        self.any_results = False

    def account(self, key: int) -> Account | None:
        """Whose task has this number; None if that client is gone."""
        return self._each.get(client_of(key))

    def add(self, account: Account) -> None:
        """Here is another client."""
        self._each[account.client] = account

    def remove(self, account: Account) -> None:
        """One is gone, and what is remembered of it."""
        del self._each[account.client]

    def append(self, entry: Ended) -> None:
        """A task has ended."""
        account = self.account(entry[0].key)
        if account is not None:
            account.has_ended(entry)

    def keep(self, task: Task, outcome: Outcome) -> None:
        """See `History`, here and below."""
        account = self.account(task.key)
        if account is not None:
            account.history.keep(task, outcome)

    def keep_result(self, task: Task, result: bytes) -> None:
        account = self.account(task.key)
        if account is not None:
            account.history.keep_result(task, result)

    def payloads(self, key: int) -> tuple[bytes, Outcome] | None:
        account = self.account(key)
        return account.history.payloads(key) if account is not None else None

    def find(self, key: int) -> Ended | None:
        account = self.account(key)
        return account.history.find(key) if account is not None else None

    def evict(self, now: float) -> None:
        for account in self._each.values():
            account.history.evict(now)

    def remembered(self) -> tuple[Ended, ...]:
        return tuple(entry for account in self._each.values() for entry in account.history.remembered())


class SharedScheduler(Recycling):
    """A scheduler whose tasks are of several clients; the arguments are those of `Recycling`."""

    __slots__ = ("_accounts", "_clean_for")

    def __init__(self, *args: Any, **others: Any) -> None:
        super().__init__(*args, **others)
        self._queues = self._planned = FairQueues()
        self._put = self._queues.append
        self._accounts = Histories()
        self._clean_for: dict[int, float] = {}  # how often each client has what is too old looked for
        self.history = self._accounts  # type: ignore[assignment]  # it is asked for no more than this
        self._keep = self._accounts.append

    @property
    def is_watched(self) -> bool:
        """Has somebody wanted to hear of every task?"""
        return self._watched

    @property
    def _fair(self) -> FairQueues:
        queues = self._queues
        assert isinstance(queues, FairQueues)
        return queues

    def open_account(self, client: int, steers: bool) -> Account:
        """Here is another client.

        Args:
            client: Its number, that of none that is there.
            steers: May it do what concerns all of them?
        """
        account = Account(self, client, steers)
        self._accounts.add(account)
        return account

    def close_account(self, account: Account) -> None:
        """A client is gone, and has no task."""
        self._accounts.remove(account)
        self._fair.go_on_with(account.client)
        self.clean_for(account, None, 0.0)

    def clean_for(self, account: Account, interval: float | None, now: float) -> None:
        """Have what is too old looked for, so often; None for never."""
        if interval is None:
            self._clean_for.pop(account.client, None)
        else:
            self._clean_for[account.client] = interval
        self._clean_every = min(self._clean_for.values(), default=0.0)
        self._clean_at = now if self._clean_for else None

    def tasks_of(self, client: int) -> Iterable[Task]:
        """The tasks of a client that have no outcome: a look at all that there are."""
        return (task for task in self._tasks.values() if client_of(task.key) == client)

    def pieces_of(self, client: int) -> list[Task]:
        """The ranges of its chunks that have none, likewise."""
        return [piece for key, pieces in self._pieces.items() if client_of(key) == client for piece in pieces]

    def keys_of_chunks(self, client: int) -> list[int]:
        """The numbers of the chunks that these are of."""
        return [key for key in self._pieces if client_of(key) == client]

    def chunks_of(self, client: int) -> int:
        """How many chunks these are of."""
        return len(self.keys_of_chunks(client))

    def end_unstarted_of(self, client: int) -> None:
        """End CANCELLED whatever of a client's no child has begun; what runs goes on, with the retries that it has."""
        for task in [*self.tasks_of(client), *self.pieces_of(client)]:
            seat = self._end_unstarted(task)
            if seat is not None and task.items:
                self._halt(seat, task, CLOSING)

    def is_unfinished(self, key: int) -> bool:
        """Has this task or chunk no outcome?"""
        return key in self._tasks or key in self._pieces

    def any_of(self, key: int) -> Task | None:
        """This task, or a range of this chunk, if it has none."""
        return self._tasks.get(key) or next(iter(self._pieces.get(key, ())), None)

    def submitted_again(self, task: DetailedTask, parts: list[list[int]]) -> None:
        """A task or chunk was accepted by a supervisor that has died with all its children.

        Args:
            task: As it was submitted.
            parts: What of it has no outcome: ranges of the chunk's items, each with its attempts, failures and crashes,
                that one included which ended with the supervisor; of a single task there is one, with no items.

        Raises:
            ValueError: These are no ranges of its items.
        """
        _check_parts(task, parts)
        (start, stop, *counts), *others = parts
        task.start, task.stop = start, stop
        task.attempts, setbacks = counts[0], task.set_back()
        setbacks.failures, setbacks.crashes = counts[1:]
        if task.attempts:
            task.run_at = None  # its time has come
        pieces: list[Task] = [task]
        for start, stop, attempts, failures, crashes in others:
            piece = task.part(start, stop)
            piece.attempts, setbacks = attempts, piece.set_back()
            setbacks.failures, setbacks.crashes = failures, crashes
            pieces.append(piece)
        self.submitted_with_details(task)
        for piece in pieces[1:]:
            self._add_piece(piece)
            self._put(piece)
        for piece in pieces:
            if piece.setbacks.crashes > piece.options.crash_retries:
                self._end_with_supervisor(piece)

    def _end_with_supervisor(self, task: Task) -> None:
        """No attempt may follow the one that ended with the supervisor."""
        self._leave_line(task, OFFER)  # that one, to a child of the dead one
        self.crashes["supervisor"] += 1
        report: dict[str, object] = {
            "pid": 0,
            "signal": 0,
            "exit_code": None,
            "cause": "supervisor",
            "attempt": task.attempts,
            "attempts": task.attempts,
            "unclaimed_deaths": 0,
        }
        self._end(task, CRASHED, report)

    def _retry(self, task: Task, asked: float | None = None) -> None:
        super()._retry(task, asked)
        account = self._accounts.account(task.key)
        if account is not None:
            account.retries += 1

    def _note_attempt(self, task: Task, attempt: Attempt) -> None:
        super()._note_attempt(task, attempt)
        account = self._accounts.account(task.key)
        if account is not None and attempt.cause:
            account.crashes[attempt.cause] += 1

    def set_aside(self, client: int) -> None:
        """Nothing of a client's starts until `go_on_with`; what runs goes on."""
        queues = self._fair
        self._tell_claims(queues)
        self._return_unclaimed([task for task in self._offers_of(None) if client_of(task.key) == client])
        queues.set_aside(client)

    def go_on_with(self, client: int) -> None:
        """The end of `set_aside`."""
        self._fair.go_on_with(client)


def _check_parts(task: Task, parts: list[list[int]]) -> None:
    """See that these are ranges of a task's items, in order.

    Raises:
        ValueError: They are not.
    """
    at = 0
    for start, stop, *_ in parts:
        if not (at <= start < stop <= task.items if task.items else (start, stop, at) == (0, 0, 0)):
            raise ValueError(f"items {start} to {stop} of {task.items}, after {at}")
        at = stop or 1


class OwnHistory(History):
    """What is remembered of the tasks of one client, which may ask by its own numbers.

    Args:
        base: What is added to these.
    """

    def __init__(self, base: int) -> None:
        super().__init__(HISTORY_MAX, HISTORY_BYTES_MAX, None, False)
        self._base = base

    def payloads(self, key: int) -> tuple[bytes, Outcome] | None:
        return super().payloads(self._base | key)

    def find(self, key: int) -> Ended | None:
        return super().find(self._base | key)


class Account:
    """A scheduler as one client sees it; it is asked by the client's own numbers of tasks, or by the scheduler's.

    Args:
        scheduler: The scheduler.
        client: The client's number.
        steers: May this client do what concerns all of them?

    Attributes:
        history: What is remembered of its tasks.
        accepted: How many there were.
        ended: How many have ended, by their final state, but for those that were completed.
        retries: How many attempts of these followed another one.
        crashes: How many ended with their child, by cause.
    """

    def __init__(self, scheduler: SharedScheduler, client: int, steers: bool) -> None:
        self._scheduler = scheduler
        self.client = client
        self.steers = steers
        self._base = client << CONTEXT_SHIFT
        self.history = OwnHistory(self._base)
        self.accepted = 0
        self.ended = Tally()
        self.retries = 0
        self.crashes = Tally()
        self._over = 0  # how many have ended

    # ------------------------------------------------------------ tasks come in

    def submitted(self, task: Task) -> None:
        """See `mpworker.supervisor.scheduler.Scheduler`, here and below."""
        self.accepted += not task.items
        self._scheduler.submitted(task)

    def submitted_watched(self, task: Task) -> None:
        self.accepted += not task.items
        self._scheduler.submitted_watched(task)

    def submitted_all(self, tasks: list[Task]) -> None:
        self.accepted += len(tasks)
        self._scheduler.submitted_all(tasks)

    def submitted_with_details(self, task: DetailedTask) -> None:
        self.accepted += not task.items
        self._scheduler.submitted_with_details(task)

    def submitted_again(self, task: DetailedTask, parts: list[list[int]]) -> None:
        self.accepted += not task.items
        self._scheduler.submitted_again(task, parts)

    def is_unfinished(self, key: int) -> bool:
        """Has this task or chunk, by the client's own number, no outcome?"""
        return self._scheduler.is_unfinished(self._base | key)

    def options_known(self, options: TaskOptions) -> None:
        self._scheduler.options_known(options)

    def has_ended(self, entry: Ended) -> None:
        """One of its tasks has."""
        self.history.append(entry)
        self._over += 1
        if entry[1] != OK:
            self.ended[entry[0].state] += 1

    # ------------------------------------------------------------ who asks

    def unfinished(self) -> int:
        return self.unfinished_tasks() + self._scheduler.chunks_of(self.client)

    def unfinished_tasks(self) -> int:
        return self.accepted - self._over

    @property
    def scheduled(self) -> int:
        """Tasks that wait for their time."""
        return sum(task.state == SCHEDULED for task in self.tasks())

    def task(self, key: int) -> Task | None:
        return self._scheduler.task(self._base | key)

    def tasks(self) -> Iterable[Task]:
        return self._scheduler.tasks_of(self.client)

    def keys(self) -> set[int]:
        return {*(task.key for task in self.tasks()), *(entry[0].key for entry in self.history.remembered())}

    def seat_of(self, key: int) -> Seat | None:
        return self._scheduler.seat_of(self._base | key)

    def is_running(self, key: int) -> bool:
        return self._scheduler.is_running(self._base | key)

    def offered(self) -> Iterable[Task]:
        return (task for task in self._scheduler.offered() if client_of(task.key) == self.client)

    def claimed_at(self, seat: Seat, task: Task) -> float | None:
        return self._scheduler.claimed_at(seat, task)

    def limiter_waits(self) -> int:
        return self._scheduler.limiter_waits()

    def queue_states(self) -> dict[str, dict[str, object]]:
        return self._scheduler.queue_states()

    # ------------------------------------------------------------ what it may do

    def cancel(self, key: int, now: float, interrupt: bool = False) -> bool:
        return self._scheduler.cancel(self._base | key, now, interrupt)

    def cancel_unstarted(self) -> None:
        self._scheduler.end_unstarted_of(self.client)

    def cancel_all(self, now: float) -> int:
        count = self.unfinished_tasks()
        self.cancel_unstarted()
        for task in list(self.tasks()):
            self._scheduler.cancel(task.key, now)
        return count

    def give_up(self, now: float) -> None:
        """Cancel everything, the items of maps that run included."""
        self.cancel_all(now)
        for key in self._scheduler.keys_of_chunks(self.client):
            self._scheduler.cancel(key, now, interrupt=True)

    def hold(self) -> None:
        self._scheduler.set_aside(self.client)

    def go_on(self) -> None:
        self._scheduler.go_on_with(self.client)

    close = go_on  # what is paused is so for all, and not this client's to end

    def watch(self, on: bool) -> None:
        """Who looks on is told of the tasks of all clients, and knows who wants to hear of which."""
        self._scheduler.watch(on or self._scheduler.is_watched)

    def retain(
        self, max_entries: int, max_bytes: int, ttl: float | None, results: bool, interval: float, now: float
    ) -> None:
        self.history.change(max_entries, max_bytes, ttl, results)
        if results:
            self._scheduler.history.any_results = True
        self._scheduler.clean_for(self, interval if ttl is not None else None, now)

    # ------------------------------------------------------------ what concerns all

    def may_steer(self) -> SharedScheduler:
        """The scheduler of all.

        Raises:
            ValueError: This client has no say in that; it was told so, and no client of ours would ask.
        """
        if not self.steers:
            raise ValueError("what concerns all clients is asked for by one that may not")
        return self._scheduler

    def configure_queue(self, name: str, **options: Any) -> None:
        self.may_steer().configure_queue(name, **options)

    def limit_rate(self, rate: float | None, burst: int, now: float) -> None:
        self.may_steer().limit_rate(rate, burst, now)

    def pause(self, names: list[str] | None) -> None:
        self.may_steer().pause(names)

    def drain_queues(self, names: list[str] | None) -> None:
        self.may_steer().drain_queues(names)

    def are_drained(self, names: list[str] | None) -> bool:
        return self.may_steer().are_drained(names)

    def resume(self, names: list[str] | None) -> None:
        self.may_steer().resume(names)
