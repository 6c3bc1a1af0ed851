"""Where the records of a worker go: what `logger=` takes."""

from __future__ import annotations

import logging

from mpworker.checks import in_a_line
from mpworker.errors import InvalidArgument

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

    from mpworker.logger import Logger

_NAME: Final = "mpworker"


class StandardLogger:
    """A `Logger` that hands records to one of the standard library.

    The message is the event and its fields as key=value; a handler that wants them apart finds them in the record, as
    `event` and `fields`. A value that holds a line break or another character that cannot be printed, which the id or
    name of a task may, is in the message as its repr; in the record it is as it is.

    Args:
        logger: Which one.
    """

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger

    @property
    def level(self) -> int:
        """The least level that it takes."""
        return max(self._logger.getEffectiveLevel(), logging.root.manager.disable + 1)

    def log(self, level: int, event: str, /, **fields: Any) -> None:
        """See `Logger`."""
        if self._logger.isEnabledFor(level):
            trace = fields.pop("traceback", "")
            words = " ".join((event, *(f"{name}={in_a_line(str(value))}" for name, value in fields.items())))
            if trace:
                fields["traceback"] = trace
                words = f"{words}\n{trace}"
            self._logger.log(level, "%s", words, extra={"event": event, "fields": fields})


def as_logger(value: Any) -> Logger:
    """What a worker was given as its logger; None for the one of the standard library.

    Raises:
        InvalidArgument: It is none.
    """
    if value is None:
        logger = logging.getLogger(_NAME)
        if not logger.handlers:
            logger.addHandler(logging.NullHandler())  # a library prints nothing where its program set up nothing
        return StandardLogger(logger)
    if isinstance(value, logging.Logger):
        return StandardLogger(value)
    if not callable(getattr(value, "log", None)):
        raise InvalidArgument(f"logger must have a method log(level, event, **fields), which {value!r} has not")
    return value  # type: ignore[no-any-return]


def level_of(logger: Logger) -> int:
    """The least level of the records that are made for it."""
    level = getattr(logger, "level", 0)
    return level if isinstance(level, int) else 0
