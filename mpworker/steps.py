"""What a verb asks of the supervisor, one question after the other, without saying how to wait for the answers.

A verb is written once, as a generator that yields its requests. `Client.carry_out` waits for each answer in the thread
that calls, `LoopClient.carry_out_soon` in an event loop. The answer is None when the supervisor is gone.
"""

from collections.abc import Generator
from typing import Any, TypeAlias, TypeVar

T = TypeVar("T")

Message: TypeAlias = dict[str, Any]
Answer: TypeAlias = dict[str, Any] | None
Steps: TypeAlias = Generator[Message, Answer, T]


def asking(message: Message) -> Steps[Answer]:
    """One request, and its answer."""
    return (yield message)
