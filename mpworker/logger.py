"""What takes the records of a worker, for type checkers and for who reads: no start needs it."""

from typing import Any, Protocol


class Logger(Protocol):
    """Something that takes records: an event and its fields. A logger of `structlog` is one.

    It may have an attribute `level`, an int: records below it are not made. It is read when the worker is made.
    """

    def log(self, level: int, event: str, /, **fields: Any) -> object:
        """Take a record.

        Args:
            level: As in the standard library: 10 for debugging to 40 for errors.
            event: What happened, such as "child_crashed".
            **fields: What is to be said of it: numbers and short texts.
        """
