"""What a client can ask of the supervisor: each verb of a REQUEST, and what answers it."""

from __future__ import annotations

import binascii
import os
import time

from mpworker.ipc import codec, json
from mpworker.ipc.levels import INFO, WARNING
from mpworker.supervisor.registry import READY

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeAlias

    from mpworker.supervisor.loop import Loop

    Message: TypeAlias = dict[str, Any]


def _cancel(loop: Loop, message: Message) -> Message:
    scheduler, world = loop.scheduler, loop.world
    seat = scheduler.seat_of(message["task"])
    if seat is not None:
        # An answer that is already in the ring came before the cancel.
        loop.read_child(world.by_number[seat.number], whole=True)
    world.resent(message["task"], None)
    interrupt = bool(message.get("interrupt"))
    return {"cancelled": scheduler.cancel(message["task"], time.monotonic(), interrupt)}


def _cancelled(loop: Loop, message: Message) -> Message:
    """A task that the client has cancelled before it sent it: it is accepted, and never begins."""
    world, scheduler = loop.world, loop.scheduler
    key, flags, function, options = (message[name] for name in ("task", "flags", "function", "options"))
    call = binascii.a2b_base64(message["call"])
    if flags & codec.ARENA:
        call = world.blocks.held(call)
    if flags & codec.DETAILED:
        scheduler.submitted_with_details(world.detailed(codec.SUBMIT, flags, key, function, options, call))
    else:
        loop.submitted(world.task(flags, key, function, options, call))
    scheduler.cancel(key, time.monotonic())
    return {}


def _resent(loop: Loop, message: Message) -> Message:
    loop.world.resent(message["task"], message["start"])
    return {}


def _cancel_unstarted(loop: Loop, message: Message) -> Message:
    if loop.cron is not None:
        loop.cron.close(waiting=False)
    loop.scheduler.cancel_unstarted()
    return {}


def _stop(loop: Loop, message: Message) -> Message:
    loop.stop(now=message["now"])
    return {}


def _close(loop: Loop, message: Message) -> Message:
    """A stop will come when the client has sent all that it has: nothing that was accepted is kept from its start."""
    loop.scheduler.close()
    return {}


def _running(loop: Loop, message: Message) -> Message:
    return {"running": loop.scheduler.is_running(message["task"])}


def _children(loop: Loop, message: Message) -> Message:
    return {
        "supervisor": os.getpid(),
        "nursery": loop.world.nursery_pid,
        "children": [
            {"pid": child.pid, "ready": child.seat.state == READY, "offers": len(child.seat.offers)}
            for child in loop.world.by_number.values()
            if child.pid
        ],
    }


def _set_max_workers(loop: Loop, message: Message) -> Message:
    hard = loop.set_max_workers(message["n"], message["descriptors"])
    if not hard:
        loop.watch.log(INFO, "pool_resized", n=message["n"])
    return {"hard": hard}


def _queue(loop: Loop, message: Message) -> Message:
    loop.scheduler.configure_queue(message["name"], **message["options"], now=time.monotonic())
    return {}


def _rate(loop: Loop, message: Message) -> Message:
    loop.scheduler.limit_rate(message["rate"], message["burst"], time.monotonic())
    return {}


def _pause(loop: Loop, message: Message) -> Message:
    loop.scheduler.pause(message["names"])
    _log_queues(loop, "queue_paused", message)
    return {}


def _drain(loop: Loop, message: Message) -> Message:
    loop.scheduler.drain_queues(message["names"])
    _log_queues(loop, "queue_draining", message)
    return {}


def _are_drained(loop: Loop, message: Message) -> Message | None:
    return {"drained": True} if loop.scheduler.are_drained(message["names"]) else None


def _resume(loop: Loop, message: Message) -> Message:
    loop.scheduler.resume(message["names"])
    loop.requests.give_up_drains(message["names"])
    _log_queues(loop, "queue_resumed", message)
    return {}


def _hold(loop: Loop, message: Message) -> Message:
    loop.scheduler.hold()
    return {}


def _go_on(loop: Loop, message: Message) -> Message:
    loop.scheduler.go_on()
    return {}


def _log_queues(loop: Loop, event: str, message: Message) -> None:
    names = message["names"]
    loop.watch.log(INFO, event, queues="all" if names is None else ",".join(names))


def _watch(loop: Loop, message: Message) -> Message:
    loop.tell_of_tasks(message["on"])
    return {}


def _record(loop: Loop, message: Message) -> Message:
    """The client wants a trace; that it can be written was so when it looked."""
    from mpworker.supervisor.tracing import Trace

    try:
        Trace(loop, message["path"]).install()
    except OSError as error:
        loop.watch.log(WARNING, "trace_failed", error=str(error))
    return {}


def _queues(loop: Loop, message: Message) -> Message:
    return loop.scheduler.queue_states()


def _cron(loop: Loop, message: Message) -> Message:
    if loop.cron is None:
        from mpworker.supervisor.cron import CronDesk

        loop.cron = CronDesk(loop.world, loop.scheduler.submitted_with_details, loop.scheduler.task)
        loop.cron.listen(loop.client_listens)
    return loop.cron.request(message)


def _listen(loop: Loop, message: Message) -> Message:
    """There are subscriptions to results, or no longer: those of recurring tasks reach them in no other way."""
    loop.client_listens = message["on"]
    if loop.cron is not None:
        loop.cron.listen(message["on"])
    return {}


def _task(loop: Loop, message: Message) -> Message:
    describer = loop.describer
    return {"task": describer.named(message["id"]) if "id" in message else describer.task(message["task"])}


def _remembered(loop: Loop, message: Message) -> Message:
    """Which of these tasks, all of which have ended, are remembered."""
    remembered = {entry[0].key for entry in loop.scheduler.history.remembered()}
    return {"tasks": [key for key in message["tasks"] if key in remembered]}


def _tasks(loop: Loop, message: Message) -> Message:
    return {"tasks": loop.describer.tasks(message["status"], message["queue"], message["limit"])}


def _outcome(loop: Loop, message: Message) -> Message:
    """What a task has come to, by the record that told it the first time."""
    entry = loop.scheduler.history.find(message["task"])
    kept = loop.scheduler.history.payloads(message["task"])
    if entry is None or kept is None:
        return {"known": False}
    loop.world.emit_again(message["as"], entry[1], kept[1])
    return {"known": True}


def _again(loop: Loop, message: Message) -> Message:
    key, scheduler = message["task"], loop.scheduler
    task = loop.world.again(scheduler.history, key, message["as"])
    if task is not None:
        scheduler.submitted_with_details(task)
    return {"again": task is not None}


def _cancel_all(loop: Loop, message: Message) -> Message:
    for child in loop.world.everyone:
        loop.read_child(child, whole=True)  # as for `cancel`
    return {"cancelled": loop.scheduler.cancel_all(time.monotonic())}


def _metrics(loop: Loop, message: Message) -> Message:
    return loop.describer.metrics() | {
        "latency": loop.latency.told(),
        "middleware_errors": loop.watch.middleware_errors,
        "arena_bytes": {"calls": 0, "results": loop.world.blocks.lending.in_use},
    }


def counts_at_the_end(loop: Loop) -> Message:
    """The metrics of a supervisor that ends, and with which everything ends that has no outcome."""
    told = _metrics(loop, {})
    for unfinished in ("scheduled", "queued", "running"):
        told["cancelled"] += told[unfinished]
        told[unfinished] = 0
    return told | {"remembered": 0, "queues": dict.fromkeys(told["queues"], 0)}


def _retention(loop: Loop, message: Message) -> Message:
    loop.scheduler.retain(**message["options"], now=time.monotonic())
    return {}


VERBS: dict[str, Callable[[Loop, Message], Message]] = {
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
}
# Answered at the end of the turn, when what came before them has been offered.
_AFTERWARDS = ("children", "queues", "task", "tasks", "metrics")
# Answered when these have something to say, which they are asked at the end of each turn.
_IN_TIME: dict[str, Callable[[Loop, Message], Message | None]] = {"drain": _are_drained}


class Requests:
    """The requests of one client.

    Args:
        loop: What carries them out.
    """

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
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
            VERBS[message["verb"]](self._loop, message)
            self._awaited.append((request, message))
        else:
            self._answer(request, message)

    def answer_later_ones(self) -> None:
        """The end of a turn."""
        while self._later:
            self._answer(*self._later.pop())
        if self._awaited:
            self._awaited = [each for each in self._awaited if not self._answer_in_time(*each)]

    def give_up_drains(self, names: list[str] | None) -> None:
        """Those of these queues (None: of all) will not come to their end."""
        left = []
        for request, message in self._awaited:
            if names is None or message["names"] is None or set(names) & set(message["names"]):
                self._loop.world.reply(request, {"drained": False})
            else:
                left.append((request, message))
        self._awaited = left

    def _answer_in_time(self, request: int, message: Message) -> bool:
        answer = _IN_TIME[message["verb"]](self._loop, message)
        if answer is not None:
            self._loop.world.reply(request, answer)
        return answer is not None

    def _answer(self, request: int, message: Message) -> None:
        verb = VERBS.get(message["verb"])
        answer = verb(self._loop, message) if verb is not None else {"error": f"unknown verb {message['verb']!r}"}
        self._loop.world.reply(request, answer)
