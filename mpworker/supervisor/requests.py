"""What a client can ask of the supervisor: each verb of a REQUEST, and what answers it."""

from __future__ import annotations

import binascii
import math
import os
import time

from mpworker.ipc import codec, json
from mpworker.ipc.levels import INFO, WARNING
from mpworker.supervisor.registry import READY

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeAlias

    from mpworker.supervisor.session import Session

    Message: TypeAlias = dict[str, Any]


def _cancel(session: Session, message: Message) -> Message:
    scheduler, loop = session.scheduler, session.loop
    seat = scheduler.seat_of(message["task"])
    if seat is not None:
        # An answer that is already in the ring came before the cancel.
        loop.read_child(loop.world.by_number[seat.number], whole=True)
    session.port.resent(message["task"], None)
    interrupt = bool(message.get("interrupt"))
    return {"cancelled": scheduler.cancel(message["task"], time.monotonic(), interrupt)}


def _cancelled(session: Session, message: Message) -> Message:
    """A task that the client has cancelled before it sent it: it is accepted, and never begins."""
    port, scheduler = session.port, session.scheduler
    key, flags, function, options = (message[name] for name in ("task", "flags", "function", "options"))
    call = binascii.a2b_base64(message["call"])
    if flags & codec.ARENA:
        call = port.blocks.held(call)
    if flags & codec.DETAILED:
        scheduler.submitted_with_details(port.detailed(codec.SUBMIT, flags, key, function, options, call))
    else:
        session.submitted(port.task(flags, key, function, options, call))
    scheduler.cancel(key, time.monotonic())
    return {}


def _resent(session: Session, message: Message) -> Message:
    session.port.resent(message["task"], message["start"])
    return {}


def _cancel_unstarted(session: Session, message: Message) -> Message:
    if session.cron is not None:
        session.cron.close(waiting=False)
    session.scheduler.cancel_unstarted()
    return {}


def _stop(session: Session, message: Message) -> Message:
    session.loop.stop(session, now=message["now"])
    return {}


def _close(session: Session, message: Message) -> Message:
    """A stop will come when the client has sent all that it has: nothing that was accepted is kept from its start."""
    session.scheduler.close()
    return {}


def _running(session: Session, message: Message) -> Message:
    return {"running": session.scheduler.is_running(message["task"])}


def _children(session: Session, message: Message) -> Message:
    return {
        "supervisor": os.getpid(),
        "nursery": session.loop.world.nursery_pid,
        "children": [
            {"pid": child.pid, "ready": child.seat.state == READY, "offers": len(child.seat.offers)}
            for child in session.loop.world.by_number.values()
            if child.pid
        ],
    }


def _set_max_workers(session: Session, message: Message) -> Message:
    session.may_steer()
    n, descriptors = message["n"], message["descriptors"]
    _check_counts(n, descriptors)
    if n > codec.CHILDREN_MAX:
        raise ValueError(f"{n} children")
    most = session.loop.children_allowed
    if n > most:
        return {"most": most, "hard": 0}
    hard = session.loop.set_max_workers(n, descriptors)
    if not hard:
        session.loop.watch.log(INFO, "pool_resized", n=n)
    return {"most": most, "hard": hard}


def _check_counts(*counts: Any) -> None:
    """See that these are counts, of 1 and more.

    Raises:
        ValueError: One is not: no client of ours would say it, and what would come of it is everybody's end.
    """
    if not all(each.__class__ is int and each > 0 for each in counts):
        raise ValueError(f"{counts!r} are no counts")


def _check_rate(rate: Any, burst: Any) -> None:
    """See that these are a rate, or None, and a burst: as `_check_counts`."""
    _check_counts(burst)
    if rate is not None and not (isinstance(rate, int | float) and 0 < rate < math.inf):
        raise ValueError(f"a rate of {rate!r}")


def _queue(session: Session, message: Message) -> Message:
    name, options = message["name"], message["options"]
    _check_counts(options["weight"], *[each for each in [options["max_running"]] if each is not None])
    _check_rate(options["rate"], options["burst"])
    if not isinstance(name, str):
        raise TypeError(f"a queue that is called {name!r}")
    session.scheduler.configure_queue(name, **options, now=time.monotonic())
    return {}


def _rate(session: Session, message: Message) -> Message:
    _check_rate(message["rate"], message["burst"])
    session.scheduler.limit_rate(message["rate"], message["burst"], time.monotonic())
    return {}


def _pause(session: Session, message: Message) -> Message:
    session.scheduler.pause(message["names"])
    _log_queues(session, "queue_paused", message)
    return {}


def _drain(session: Session, message: Message) -> Message:
    session.scheduler.drain_queues(message["names"])
    _log_queues(session, "queue_draining", message)
    return {}


def _are_drained(session: Session, message: Message) -> Message | None:
    return {"drained": True} if session.scheduler.are_drained(message["names"]) else None


def _resume(session: Session, message: Message) -> Message:
    session.scheduler.resume(message["names"])
    session.requests.give_up_drains(message["names"])
    _log_queues(session, "queue_resumed", message)
    return {}


def _hold(session: Session, message: Message) -> Message:
    session.scheduler.hold()
    return {}


def _go_on(session: Session, message: Message) -> Message:
    session.scheduler.go_on()
    return {}


def _log_queues(session: Session, event: str, message: Message) -> None:
    names = message["names"]
    session.loop.watch.log(INFO, event, queues="all" if names is None else ",".join(names))


def _watch(session: Session, message: Message) -> Message:
    session.tell_of_tasks(message["on"])
    return {}


def _record(session: Session, message: Message) -> Message:
    """The client wants a trace; that it can be written was so when it looked."""
    from mpworker.supervisor.loop import Loop
    from mpworker.supervisor.tracing import Trace

    loop = session.loop
    if not isinstance(loop, Loop):
        raise ValueError("a trace is of a supervisor that has one client")  # no client of ours asks
    try:
        Trace(loop, message["path"]).install()
    except OSError as error:
        session.loop.watch.log(WARNING, "trace_failed", error=str(error))
    return {}


def _queues(session: Session, message: Message) -> Message:
    return session.scheduler.queue_states()


def _cron(session: Session, message: Message) -> Message:
    if session.cron is None:
        from mpworker.supervisor.cron import CronDesk

        scheduler = session.scheduler
        session.cron = CronDesk(session.port, scheduler.submitted_with_details, scheduler.task)
        session.loop.crons.append(session.cron)
        session.cron.listen(session.listens)
    return session.cron.request(message)


def _listen(session: Session, message: Message) -> Message:
    """There are subscriptions to results, or no longer: those of recurring tasks reach them in no other way."""
    session.listens = message["on"]
    if session.cron is not None:
        session.cron.listen(message["on"])
    return {}


def _task(session: Session, message: Message) -> Message:
    describer = session.describer
    return {"task": describer.named(message["id"]) if "id" in message else describer.task(message["task"])}


def _remembered(session: Session, message: Message) -> Message:
    """Which of these tasks, all of which have ended, are remembered."""
    remembered = {entry[0].key & codec.TASK_MASK for entry in session.scheduler.history.remembered()}
    return {"tasks": [key for key in message["tasks"] if key in remembered]}


def _tasks(session: Session, message: Message) -> Message:
    return {"tasks": session.describer.tasks(message["status"], message["queue"], message["limit"])}


def _outcome(session: Session, message: Message) -> Message:
    """What a task has come to, by the record that told it the first time."""
    entry = session.scheduler.history.find(message["task"])
    kept = session.scheduler.history.payloads(message["task"])
    if entry is None or kept is None:
        return {"known": False}
    session.port.emit_again(message["as"], entry[1], kept[1])
    return {"known": True}


def _again(session: Session, message: Message) -> Message:
    key, scheduler = message["task"], session.scheduler
    task = session.port.again(scheduler.history, key, message["as"])
    if task is not None:
        scheduler.submitted_with_details(task)
    return {"again": task is not None}


def _cancel_all(session: Session, message: Message) -> Message:
    loop = session.loop
    for child in loop.world.everyone:
        loop.read_child(child, whole=True)  # as for `cancel`
    return {"cancelled": session.scheduler.cancel_all(time.monotonic())}


def _metrics(session: Session, message: Message) -> Message:
    return session.describer.metrics() | {
        "latency": session.latency.told(),
        "middleware_errors": session.loop.watch.middleware_errors,
        "arena_bytes": {"calls": 0, "results": session.port.blocks.lending.in_use},
    }


def counts_at_the_end(session: Session) -> Message:
    """The metrics of a supervisor that ends, and with which everything ends that has no outcome."""
    told = _metrics(session, {})
    for unfinished in ("scheduled", "queued", "running"):
        told["cancelled"] += told[unfinished]
        told[unfinished] = 0
    return told | {"remembered": 0, "queues": dict.fromkeys(told["queues"], 0)}


def _service(session: Session, message: Message) -> Message:
    """What an operator sees, or has done."""
    session.may_steer()
    return session.loop.operated(message)


def _begin(session: Session, message: Message) -> Message:
    """What an operator has done that takes its time."""
    session.may_steer()
    message["number"] = session.loop.begin(message["verb"])
    return {}


def _outcome_of_it(session: Session, message: Message) -> Message | None:
    return session.loop.outcome(message["verb"], message["number"])


def _retention(session: Session, message: Message) -> Message:
    session.scheduler.retain(**message["options"], now=time.monotonic())
    return {}


VERBS: dict[str, Callable[[Session, Message], Message]] = {
    "cancel": _cancel,
    "cancelled": _cancelled,
    "resent": _resent,
    "cancel_unstarted": _cancel_unstarted,
    "stop": _stop,
    "close": _close,
    "running": _running,
    "children": _children,
    "set_max_workers": _set_max_workers,
    "queue": _queue,
    "rate": _rate,
    "pause": _pause,
    "drain": _drain,
    "resume": _resume,
    "hold": _hold,
    "go_on": _go_on,
    "queues": _queues,
    "cron": _cron,
    "listen": _listen,
    "task": _task,
    "tasks": _tasks,
    "remembered": _remembered,
    "outcome": _outcome,
    "again": _again,
    "cancel_all": _cancel_all,
    "metrics": _metrics,
    "retention": _retention,
    "watch": _watch,
    "record": _record,
    "service": _service,
    "reload": _begin,
    "stacks": _begin,
}
# Answered at the end of the turn, when what came before them has been offered.
_AFTERWARDS = ("children", "queues", "task", "tasks", "metrics")
# Answered when these have something to say, which they are asked at the end of each turn.
_IN_TIME: dict[str, Callable[[Session, Message], Message | None]] = {
    "drain": _are_drained,
    "reload": _outcome_of_it,
    "stacks": _outcome_of_it,
}


class Requests:
    """The requests of one client.

    Args:
        session: The client's.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._later: list[tuple[int, Message]] = []
        self._awaited: list[tuple[int, Message]] = []

    def take(self, request: int, data: bytes) -> None:
        """A request has come.

        Raises:
            ValueError: It is none that a client of ours would send.
        """
        message = json.loads(data)
        if message["verb"] in _AFTERWARDS:
            self._later.append((request, message))
        elif message["verb"] in _IN_TIME:
            VERBS[message["verb"]](self._session, message)
            self._awaited.append((request, message))
        else:
            self._answer(request, message)

    def answer_later_ones(self) -> None:
        """The end of a turn."""
        while self._later:
            self._answer(*self._later.pop())
        if self._awaited:
            self._awaited = [each for each in self._awaited if not self._answer_in_time(*each)]

    def are_open(self) -> bool:
        """Is there one that has no answer yet?"""
        return bool(self._later or self._awaited)

    def give_up_drains(self, names: list[str] | None) -> None:
        """Those of these queues (None: of all) will not come to their end."""
        left = []
        for request, message in self._awaited:
            of = message.get("names", ())
            if message["verb"] == "drain" and (names is None or of is None or set(names) & set(of)):
                self._session.port.reply(request, {"drained": False})
            else:
                left.append((request, message))
        self._awaited = left

    def _answer_in_time(self, request: int, message: Message) -> bool:
        answer = _IN_TIME[message["verb"]](self._session, message)
        if answer is not None:
            self._session.port.reply(request, answer)
        return answer is not None

    def _answer(self, request: int, message: Message) -> None:
        verb = VERBS.get(message["verb"])
        answer = verb(self._session, message) if verb is not None else {"error": f"unknown verb {message['verb']!r}"}
        self._session.port.reply(request, answer)
