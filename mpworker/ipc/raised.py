"""What a task raised, on its way from the child to the client.

The report of it is plain data, which always arrives; the exception itself is a pickle inside. So the client can say
what was raised also where the exception cannot be sent, or not be made again, and the status is the same in each case:
the task raised.
"""

import pickle
from typing import NamedTuple

from mpworker.ipc import payload


class Raised(NamedTuple):
    """The report.

    Attributes:
        type_name: The exception's type.
        message: What it says.
        traceback: Its traceback, as text.
        pickled: The exception by `dumps`, empty if it cannot be sent.
        why_not: Why it cannot.
    """

    type_name: str
    message: str
    traceback: str
    pickled: bytes
    why_not: str


def dumps_report(report: Raised) -> bytes:
    """Pickle a report."""
    return pickle.dumps(tuple(report), payload.PROTOCOL)


def loads_report(data: bytes) -> Raised:
    """Unpickle a report; no code but ours takes part."""
    return Raised(*payload.loads(data))


def dumps(error: BaseException) -> bytes:
    """Pickle an exception.

    Raises:
        Unserializable: It cannot be pickled.
    """
    return payload.dumps(error)


def checked(error: object) -> BaseException:
    """What an exception's pickle made, if that is one: a `__reduce__` may make anything.

    Raises:
        TypeError: It is something else.
    """
    if not isinstance(error, BaseException):
        raise TypeError(f"its pickle makes a {payload.name_of_type(error)}, which is no exception")
    return error
