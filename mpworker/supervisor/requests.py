"""What a client can ask of the supervisor: each verb of a REQUEST, and what answers it."""

import json
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from mpworker.supervisor.registry import READY

if TYPE_CHECKING:
    from mpworker.supervisor.loop import Loop

Message: TypeAlias = dict[str, Any]


def _cancel(loop: "Loop", message: Message) -> Message:
    scheduler, world = loop.scheduler, loop.world
    seat = scheduler.seat_of(message["task"])
    if seat is not None:
        # An answer that is already in the ring came before the cancel.
        loop.read_child(world.by_number[seat.number], whole=True)
    world.resent(message["task"], None)
    interrupt = bool(message.get("interrupt"))
    return {"cancelled": scheduler.cancel(message["task"], time.monotonic(), interrupt)}


def _resent(loop: "Loop", message: Message) -> Message:
    loop.world.resent(message["task"], message["start"])
    return {}


def _cancel_unstarted(loop: "Loop", message: Message) -> Message:
    loop.scheduler.cancel_unstarted()
    return {}


def _stop(loop: "Loop", message: Message) -> Message:
    loop.stop(now=message["now"])
    return {}


def _running(loop: "Loop", message: Message) -> Message:
    return {"running": loop.scheduler.is_running(message["task"])}


def _children(loop: "Loop", message: Message) -> Message:
    return {
        "supervisor": os.getpid(),
        "nursery": loop.world.nursery_pid,
        "children": [
            {"pid": child.pid, "ready": child.seat.state == READY, "offers": len(child.seat.offers)}
            for child in loop.world.by_number.values()
            if child.pid
        ],
    }


def _queue(loop: "Loop", message: Message) -> Message:
    loop.scheduler.configure_queue(message["name"], **message["options"], now=time.monotonic())
    return {}


def _rate(loop: "Loop", message: Message) -> Message:
    loop.scheduler.limit_rate(message["rate"], message["burst"], time.monotonic())
    return {}


def _pause(loop: "Loop", message: Message) -> Message:
    loop.scheduler.pause(message["names"])
    return {}


def _resume(loop: "Loop", message: Message) -> Message:
    loop.scheduler.resume(message["names"])
    return {}


def _queues(loop: "Loop", message: Message) -> Message:
    return loop.scheduler.queue_states()


VERBS: dict[str, Callable[["Loop", Message], Message]] = {
    "cancel": _cancel,
    "resent": _resent,
    "cancel_unstarted": _cancel_unstarted,
    "stop": _stop,
    "running": _running,
    "children": _children,
    "queue": _queue,
    "rate": _rate,
    "pause": _pause,
    "resume": _resume,
    "queues": _queues,
}
# Answered at the end of the turn, when what came before them has been offered.
_AFTERWARDS = ("children", "queues")


class Requests:
    """The requests of one client.

    Args:
        loop: What carries them out.
    """

    def __init__(self, loop: "Loop") -> None:
        self._loop = loop
        self._later: list[tuple[int, Message]] = []

    def take(self, request: int, data: bytes) -> None:
        """A request has come.

        Raises:
            ValueError: It is none that a client of ours would send.
        """
        message = json.loads(data)
        if message["verb"] in _AFTERWARDS:
            self._later.append((request, message))
        else:
            self._answer(request, message)

    def answer_later_ones(self) -> None:
        """The end of a turn."""
        while self._later:
            self._answer(*self._later.pop())

    def _answer(self, request: int, message: Message) -> None:
        verb = VERBS.get(message["verb"])
        answer = verb(self._loop, message) if verb is not None else {"error": f"unknown verb {message['verb']!r}"}
        self._loop.world.reply(request, answer)
