"""What a verb asks of the supervisor, one question after the other, without saying how to wait for the answers.

A verb is written once, as a generator that yields its requests. `Client.carry_out` waits for each answer in the thread
that calls, `LoopClient.carry_out_soon` in an event loop. The answer is None when the supervisor is gone.
"""

from __future__ import annotations

from _collections_abc import Generator  # as `os` has it: `collections` comes later

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TypeAlias, TypeVar

    from mpworker.client import Client

    T = TypeVar("T")

    Message: TypeAlias = dict[str, Any]
    Answer: TypeAlias = dict[str, Any] | None
    Steps: TypeAlias = Generator[Message, Answer, T]
else:
    Message = Answer = dict  # what is found by who imports these names
    Steps = Generator


def asking(message: Message) -> Steps[Answer]:
    """One request, and its answer."""
    return (yield message)


def answered(client: Client, message: Message) -> Steps[Message]:
    """The same for a verb that is nothing without an answer.

    Raises:
        WorkerStopped: The worker is over.
        SupervisorLost: Its supervisor has died.
        StartFailed: It never came to work.
    """
    answer = yield message
    if answer is None:
        client.refuse_if_closed()
        raise AssertionError("a supervisor that answers nothing is gone, and so its client is closed")
    return answer
