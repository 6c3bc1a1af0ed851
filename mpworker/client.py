"""The client's end of a worker: tasks and requests go out here; `mpworker.reader` takes in what comes back."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from mpworker import clients, context
from mpworker.ending import Ending
from mpworker.errors import (
    ConfigurationError,
    QueueFull,
    SerializationError,
    StartFailed,
    SupervisorLost,
    WorkerStopped,
)
from mpworker.functions import FunctionTable
from mpworker.future import TaskFuture
from mpworker.ipc import codec, details, json, payload
from mpworker.ipc._native import Ring, Submit
from mpworker.ipc.channel import Channel
from mpworker.ipc.levels import INFO
from mpworker.kept import Pending
from mpworker.launch import descriptors_of, overlap, too_few_descriptors
from mpworker.observer import Observer
from mpworker.observing import Observing
from mpworker.options import WorkerOptions
from mpworker.optiontable import OptionTable, QueueTable
from mpworker.outcomes import start_failed
from mpworker.reader import Reader
from mpworker.resending import Resending
from mpworker.sending import Sending
from mpworker.starting import Beginning
from mpworker.steps import Answer, Steps, asking
from mpworker.waiting import Reply, wake_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final, NoReturn, TypeAlias, TypeVar

    from mpworker.ipc.codec import Record
    from mpworker.launch import Supervisor
    from mpworker.middleware import Submission
    from mpworker.registering import Registration

    T = TypeVar("T")
    Make: TypeAlias = Callable[["Client", int, str], TaskFuture[Any]]
    # The arguments of `Client.submit`.
    Call: TypeAlias = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], int, bytes, Make]


ASK_AGAIN: Final[dict[str, Any]] = {"ask again": True}  # the answer to what a supervisor was asked that has died


def queue_full(bound: int, timeout: float) -> QueueFull:
    """The error of a submission that finds `max_pending` tasks unfinished."""
    return QueueFull(f"max_pending={bound} tasks are unfinished, and submit_timeout={timeout:g} s is over")


class Client(Reader):
    """One client of one supervisor of its own.

    Args:
        options: The worker's options.
        observing: What is beside and around the tasks.
        start: What it begins with.

    Attributes:
        prefix: Of the ids of its tasks.
        functions: What was sent once of them.
        option_table: What the supervisor knows of options,
        queues: and of queues.
        sending: How what needs patience is sent,
        resending: and what must be sent once more.
        asked: The requests that this supervisor has, and has not answered, if another one may have to be asked.
        recovery: What is done when the supervisor dies; None where that is the end.
        recurs: A recurring task was registered.
        unwanted: The chunks that nobody has wanted any more since their supervisor died.
    """

    # All that is sent and read passes here, and with so many attributes CPython would look each up in a dictionary.
    __slots__ = (
        "_half",
        "_keys",
        "_last_key",
        "_options",
        "_unanswered",
        "asked",
        "functions",
        "observer",
        "option_table",
        "prefix",
        "queues",
        "recovery",
        "recurs",
        "registration",
        "resending",
        "sending",
        "submission",
        "unwanted",
    )

    make_future: type[TaskFuture[Any]] = TaskFuture
    may_wait = True  # for what comes, where it is called
    _interrupts = False  # a map that is closed interrupts its items that run
    _observer_kind: type[Observer] = Observer
    _ending_kind: type[Ending] = Ending

    def __init__(self, options: WorkerOptions, observing: Observing, start: Beginning) -> None:
        self.prefix = start.prefix
        super().__init__(start.supervisor, self._ending_kind(self))
        self.recovery = start.recovery_of(self)
        self.asked: dict[int, object] = {}
        self._unanswered: list[int] = []  # requests that a supervisor had which has died
        self.unwanted: list[int] = []
        if self.recovery is not None:
            self.pending = Pending()
            self.take_out = self.pending.pop
        self.observer = self._observer_kind(self, start.logger, observing.tracer)
        self.submission: Submission | None = None
        if observing.submit_middleware:
            from mpworker import middleware as around

            failed = partial(self.observer.failed, "middleware")
            self.submission = around.Submission(observing.submit_middleware, failed)
        self.registration: Registration | None = None
        self._options = options
        self.queues = QueueTable(self, options.n, options.max_pending)
        self.option_table = OptionTable(self)
        self._keys = itertools.count(1)
        self._last_key = 0
        self.recurs = False
        self.sending = Sending(self, options.max_payload_bytes)
        self.resending = Resending(self)
        self._half = options.client_ring_bytes // 2
        self.functions = FunctionTable(self.sending.function, self.sending.forget)
        self.submits_to(start.supervisor.channel)
        clients.living.add(self)
        try:
            if self.recovery is not None:
                self.recovery.start()
            self._observe(observing)
        except BaseException:  # no thread is left, say
            self.ending.stop_now()  # whoever keeps the error keeps the client, too
            raise

    def submits_to(self, channel: Channel) -> None:
        """Have most tasks sent to this channel in one native call: see submit.h."""
        if isinstance(channel.outbound, Ring):
            self._submit = Submit(
                channel.outbound,
                channel.inbound,
                channel.peer_bell,
                self.functions.entries,
                self.functions.live,
                self.pending,
                self._keys,
                payload.dumps_parts,
                self.kept,
                self._options.max_pending,
                self.sending.max_record,
                self._half,
            )

    @property
    def _keeps(self) -> dict[int, Record] | None:
        """Where what is pushed is kept in the same moment; None where that is done elsewhere, or not."""
        return self.kept

    @property
    def _asks(self) -> dict[int, object] | None:
        """Where it is noted in the moment of a push that the supervisor has a request; None as above."""
        return None if self.recovery is None else self.asked

    @property
    def kept(self) -> dict[int, Record] | None:
        """What is kept of what was sent, to be sent again; None where nothing is."""
        pending = self.pending
        return pending.kept if isinstance(pending, Pending) else None

    def note_standing(self, about: object, *messages: dict[str, Any]) -> None:
        """What the supervisor is asked once and for all, and so another one is, too; with no message no longer."""
        pending = self.pending
        if isinstance(pending, Pending):
            if messages:
                pending.standing[about] = [*messages]
            else:
                pending.standing.pop(about, None)

    def standing(self, about: object) -> list[dict[str, Any]]:
        """What was noted of this."""
        pending = self.pending
        return pending.standing.get(about, []) if isinstance(pending, Pending) else []

    def _recovers(self) -> bool:
        return self.recovery is not None and self.recovery.takes_over()

    def stand_by(self, supervisor: Supervisor) -> None:
        """The supervisor is dead, and another one waited for: nothing is sent until `is_served_by`."""
        self._submit = None
        self.takes_from(supervisor)
        self._unanswered, self.asked = [*self._unanswered, *self.asked], {}

    def is_served_by(self, supervisor: Supervisor) -> None:
        """Here is another supervisor, which knows what the one before did: whoever waited to send something goes on."""
        if self._over:
            supervisor.hang_up()
            supervisor.close()
            return
        waited_on, outbound = self._bell, supervisor.channel.outbound
        self.sending.max_record = min(outbound.max_payload, self._options.max_payload_bytes)
        self.observer.begins_anew()
        if self.fanout is not None:
            self.fanout.begins_anew()
        self.takes_from(supervisor)
        self.submits_to(supervisor.channel)
        if self.fanout is not None:
            self.fanout.tell_for_sure()
        unanswered, self._unanswered = self._unanswered, []
        for key in unanswered:  # of the rest none has been sent: whoever does so sends it to this one
            reply = self._replies.get(key)
            if reply is not None:
                reply.settle(ASK_AGAIN)
        wake_all((*self._any_event, *self._followers))
        if waited_on is not None:
            waited_on.wake()
        self._tell_unwanted()

    def _observe(self, observing: Observing) -> None:
        self.observer.post(INFO, "pool_started", supervisor=self.supervisor.pid, n=self._options.n)
        self.observer.watch(observing.hooks)
        if observing.logger is not None:
            self.observer.read_in_time(True)

    # ------------------------------------------------------------ what is accepted

    def _refuse(self) -> None:
        """Raise if nothing more is accepted."""
        if self._forked:
            raise WorkerStopped("this worker was made before fork: make a new one in this process")
        if self._broken is not None:
            raise start_failed(self._broken)
        if self._closed == "lost":
            raise SupervisorLost(f"the supervisor (pid {self.supervisor.pid}) has died")
        if self._closed:
            raise WorkerStopped("the worker is stopped: it takes no more tasks, and knows of none")

    def agree(self, terms: dict[str, Any]) -> None:
        """What the supervisor says of what may be asked for, at the start and whenever that changes.

        Args:
            terms: {"queues", "unknown_queues", "priority_min"}: the names that are there, whether another one is an
                error ("refuse"), and the lowest priority; None for any.
        """
        self.queues.know(terms["queues"], terms["unknown_queues"] == "refuse")
        self.option_table.priority_min = terms["priority_min"]

    def refuse_unless_stopped(self) -> None:
        """Raise if it is over, but not by a stop."""
        if self._closed != "stopped":
            self.refuse_if_closed()

    def is_closed(self) -> bool:
        """Is nothing more accepted?"""
        return bool(self._closed)

    def refuse_if_closed(self) -> None:
        """Raise if nothing more is accepted."""
        if self._closed:
            self._refuse()

    # ------------------------------------------------------------ tasks

    def submit(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: int,
        said: bytes,
        make: Make,
    ) -> TaskFuture[Any]:
        """Send one task.

        Args:
            function: What is called.
            args: Its arguments.
            kwargs: Its keyword arguments.
            options: The key of its options.
            said: What it says beyond them, packed: see `mpworker.ipc.details`.
            make: Makes its future of this client, its key and the name of the function.
        """
        if self._submit is None:
            return self._submit_otherwise(function, args, kwargs, options, said, make)
        try:
            sent = self._submit.submit(self, function, args, kwargs, options, said, make)
        except payload.Unserializable as error:
            raise self.cannot_send(function, args, kwargs, error) from error
        if isinstance(sent, TaskFuture):
            return sent
        return self._submit_otherwise(function, args, kwargs, options, said, make, sent)

    def submit_all(self, calls: list[Call], futures: list[TaskFuture[Any]]) -> None:
        """Send tasks in one go, as many as go together; if one raises, those before it are sent.

        Args:
            calls: The arguments of `submit` for each.
            futures: Where each of them is put, in this order; empty so far.
        """
        native = self._submit
        while len(futures) < len(calls):
            left: bytes | payload.Parts | None = None
            if native is not None:
                try:
                    left = native.submit_all(self, calls, futures)
                except payload.Unserializable as error:
                    raise self.cannot_send(*calls[len(futures)][:3], error) from error
            if len(futures) < len(calls):
                futures.append(self._submit_otherwise(*calls[len(futures)], left))

    def _submit_otherwise(  # noqa: PLR0912, PLR0915  # a look counts only if no call comes between it and its act
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: int,
        said: bytes,
        make: Make,
        left: bytes | payload.Parts | None = None,
    ) -> TaskFuture[Any]:
        """Send one task that does not go as most do.

        Args:
            function: See `submit`, here and below.
            args: See there.
            kwargs: See there.
            options: See there.
            said: See there.
            make: See there.
            left: The pickle of its arguments, if there is one already.
        """
        pending, kept = self.pending, self._keeps
        dumps = payload.dumps_parts
        functions = self.functions
        live = functions.live
        while True:
            flags = 0
            if self._closed:
                self._refuse()
            try:
                function_key = functions.key(function)
                if left is not None and function_key:
                    data, left = left, None  # once: what shared objects are in it is there for one attempt to send it
                else:
                    data = dumps((args, kwargs) if function_key else (function, args, kwargs))
            except payload.Unserializable as error:
                raise self.cannot_send(function, args, kwargs, error) from error
            key = next(self._keys)
            if len(pending) >= self._options.max_pending:
                self._wait_until_there_is_room()
            name = live.get(function_key) or payload.name_of_callable(function)
            future = make(self, key, name)
            if not isinstance(data, bytes):
                parts = data  # which keeps what is shared in it until it is sent
                flags, data = self.sending.place(parts, key)
            if said:
                flags |= codec.DETAILED
                data = said + data
            may_be_sent = False
            record = (codec.SUBMIT, flags, key, function_key, options, data)
            try:
                large = len(data) > self.sending.max_record
                if len(pending) >= self._options.max_pending and self.may_wait:
                    self.make_room()  # other threads have filled it
                pending[key] = future
                if key > self._last_key:  # noqa: PLR1730  # no call since the look; else another thread was faster
                    self._last_key = key
                # The GIL changes hands at calls: between these looks and the push no other thread can close the worker
                # or drop the function. Nor is the task forgotten: whoever closes settles what is pending afterwards.
                if function_key in live and not self._closed:
                    may_be_sent = True
                    if not large and (
                        self._push(*record) if kept is None else self._push_keeping(kept, record, *record)
                    ):
                        break
                    if self.sending.slowly(*record):
                        break
            except BaseException:
                pending.pop(key, None)
                if not may_be_sent:
                    self.sending.unsent(flags, data)
                raise
            pending.pop(key, None)
            self.sending.unsent(flags, data)
        self._ring()
        if not key & 63 and self._fill() > self._half:
            self.poll()
        return future

    def stands_in_line(self) -> bool:
        """Would a task that is submitted now wait in this process?"""
        return False

    def make_room(self) -> None:
        """Wait until one more task may be accepted.

        Raises:
            QueueFull: That took longer than `submit_timeout`.
        """
        while len(self.pending) >= self._options.max_pending:
            self._wait_until_there_is_room()
            if not self.may_wait:
                return  # what is too much waits elsewhere

    def _wait_until_there_is_room(self) -> None:
        timeout, bound = self._options.submit_timeout, self._options.max_pending
        self.poll()
        if not self.wait_for(self.when(lambda: len(self.pending) < bound or bool(self._closed)), timeout):
            raise queue_full(bound, timeout or 0.0)
        self.refuse_if_closed()

    def cannot_send(
        self, function: object, args: Sequence[Any], kwargs: Mapping[str, Any], error: payload.Unserializable
    ) -> BaseException:
        """The error of a call that cannot be pickled."""
        from mpworker import hints

        name = payload.name_of_callable(function)
        cause = error.__cause__ if error.__cause__ is not None else error
        what = hints.culprit(function, args, kwargs)
        return SerializationError(f"the call of {name!r} cannot be pickled: {type(cause).__name__}: {cause}{what}")

    def is_iterable(self, value: Any) -> bool:
        """Can `map` read it?"""
        try:
            iter(value)
        except TypeError:
            return False
        return True

    def map(self, *args: Any) -> Any:
        """The results of a `map`; for the arguments see `Mapping`."""
        from mpworker.mapping import Mapping as Map  # not before: no first result shall wait for it

        return Map(self, *args).results()

    def send_chunk(
        self,
        chunk: Any,
        flags: int,
        function: int,
        options: int,
        items: int,
        data: bytes | payload.Parts,
        said: dict[str, Any] | None = None,
        again: bool = False,
    ) -> None:
        """Send a chunk of a map.

        Args:
            chunk: Where its results go.
            flags: Are its items argument tuples?
            function: The number of what is called.
            options: The key of its options.
            items: How many there are.
            data: Their pickle.
            said: What they say beyond their options.
            again: They have been accepted before, and go until the end.
        """
        key = next(self._keys)
        c = options | items << 32
        if not isinstance(data, bytes):  # whoever calls this keeps what is shared in it until it is sent
            placed, data = self.sending.place(data, key, again)
            flags |= placed
        if said:
            flags |= codec.DETAILED
            data = details.pack(said) + data
        large = len(data) > self.sending.max_record
        record = (codec.CHUNK, flags, key, function, c, data)
        chunk.key = key
        self.pending[key] = chunk
        try:
            if self._closed and not again:
                self._refuse()
            if again and (self.ending.outcome or self.ending.cancels):  # if not yet, what is pending is settled then
                self.pending.pop(key, None)
                chunk.settle(*(self.ending.outcome or (codec.CANCELLED, b"")))
            elif large or not self.sending.push(record):
                self.sending.slowly(*record, again)
        except Exception:
            self.pending.pop(key, None)  # not after an interrupt: it may have been sent, and its map cancels it
            raise
        chunk.sent = True
        self._ring()

    # ------------------------------------------------------------ requests

    def request(self, message: dict[str, Any], timeout: float | None = None) -> dict[str, Any] | None:
        """Ask the supervisor; None when it is gone or does not answer in time."""
        if self._forked:
            self._refuse()
        by = None if timeout is None else time.monotonic() + timeout
        while True:
            reply = Reply()
            key = next(self._keys)
            self._replies[key] = reply
            if self._exited:
                self._replies.pop(key, None)
                return None
            self.sending.send(codec.REQUEST, 0, key, 0, 0, json.dumps(message).encode())
            self.wait_for(reply, None if by is None else max(0.0, by - time.monotonic()))
            self._replies.pop(key, None)
            self.asked.pop(key, None)
            if reply.answer is not ASK_AGAIN:
                return None if reply.answer is None or "lost" in reply.answer else reply.answer

    def tell(self, message: dict[str, Any]) -> None:
        """A request whose answer nobody waits for; it comes before whatever is sent later."""
        self.sending.send(codec.REQUEST, 0, 0, 0, 0, json.dumps(message).encode())

    def carry_out(self, steps: Steps[T]) -> T:
        """Ask what a verb asks, and return what it returns."""
        try:
            self._ask_each(steps)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        finally:
            steps.close()

    def _ask_each(self, steps: Steps[T]) -> NoReturn:
        answer: Answer = None
        while True:
            answer = self.request(steps.send(answer))

    def cancel(self, key: int) -> bool:
        """Cancel a task. True if it will end cancelled, False if it had ended."""
        try:
            answer = self.request({"verb": "cancel", "task": key})
        except (WorkerStopped, SupervisorLost, StartFailed):
            if self._forked:
                raise
            answer = None
        return bool(answer and answer["cancelled"])

    def abandon(self, key: int) -> None:
        """Nobody wants the rest of this chunk any more."""
        if self.recovery is not None and self.recovery.stands_by():
            self.unwanted.append(key)
            self.pending.pop(key, None)
            if not self.recovery.stands_by():
                self._tell_unwanted()
            return
        if key in self.pending and not (self._exited or self._forked):
            try:
                # The reply is an event, by which a submit that waits for max_pending sees that there is room.
                self.tell(self.cancel_of_chunk(key))
            except BaseException:
                if not getattr(self.pending.get(key), "sent", True):
                    self.pending.pop(key, None)  # of what was not sent nobody tells the end
                raise
        self.pending.pop(key, None)  # last: a chunk that is neither here nor cancelled would keep a drain waiting

    def cancel_of_chunk(self, key: int) -> dict[str, Any]:
        """The request that cancels what is left of a chunk."""
        return {"verb": "cancel", "task": key, "interrupt": self._interrupts}

    def _tell_unwanted(self) -> None:
        """Tell the supervisor that is there now what nobody has wanted any more since it was told of it.

        It is most often nothing, and waits for no room: whoever finds another supervisor must not wait for this one.
        """
        while self.unwanted and not (self._exited or self._forked):
            key = self.unwanted.pop()
            if not self._push(codec.REQUEST, 0, 0, 0, 0, json.dumps(self.cancel_of_chunk(key)).encode()):
                self.unwanted.append(key)
                return
            self._ring()

    def new_key(self) -> int:
        """The number of a task that is sent otherwise, or that the supervisor makes for this client."""
        key = next(self._keys)
        self._last_key = max(self._last_key, key)
        return key

    def key_of(self, task_id: str) -> int:
        """The number that an id of ours names; 0 if it names none that was given out."""
        number = task_id.removeprefix(self.prefix)
        if not (task_id.startswith(self.prefix) and number.isdecimal() and len(number) < 20):
            return 0
        key = int(number)
        return key if 0 < key <= self._last_key or (self.recurs and key >= codec.CRON_KEYS) else 0

    def is_running(self, key: int) -> bool:
        """Has a child claimed the task?"""
        answer = self.request({"verb": "running", "task": key})
        return bool(answer and answer["running"])

    def resizing(self, n: int) -> Steps[None]:
        """Have n children from now on."""
        self.refuse_if_closed()
        needed = descriptors_of(n + overlap(self._options))
        answer = yield from asking({"verb": "set_max_workers", "n": n, "descriptors": needed})
        if answer is None:
            self._refuse()
        elif n > answer["most"]:
            raise ConfigurationError(f"n must be at most {answer['most']}, not {n}: see n_max of the supervisor")
        elif answer["hard"]:
            raise too_few_descriptors(n, needed, answer["hard"])
        self.queues.children_are(n)

    # ------------------------------------------------------------ the end

    def is_fork(self) -> bool:
        """Is this process a fork of the one that made the worker?"""
        return self._forked

    def _fail_all(self, status: int, data: bytes) -> None:
        if self.observer.unfinished is None:
            self.observer.unfinished = frozenset(self.pending)
        super()._fail_all(status, data)

    def _supervisor_died(self) -> None:
        super()._supervisor_died()
        if not self._over:
            return  # another supervisor is waited for
        if self._closed == "lost" and context._orphaned is not None:
            context._orphaned()
        clients.living.discard(self)
        if self.recovery is not None:
            self.recovery.close()

    def forked(self) -> None:
        """This process is a fork: the rings are not here, the supervisor is not ours."""
        self._forked = True
        self._closed = "forked"
        self.supervisor.is_a_forks()
        if self.arenas is not None:
            self.arenas.forked()
        if self.recovery is not None:
            self.recovery.forked()
        self._forget_threads()
        self.observer.forked()
        self.functions = FunctionTable(self.sending.function, self.sending.forget)
