"""Results on standard output, for ``-o -``: a line of JSON each, as in a file, and no way to resume.

Failures, in the words of the failures file, are lines of standard error. So is what the target prints, here or in a
child: whoever reads the results shall find nothing else among them. For this, standard error takes the place of
descriptor 1 as long as the stream is open, and every process that is started then inherits it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import Self

from mpworker.cli.errors import CommandError, ExitCode
from mpworker.cli.inputs import START, Mark
from mpworker.cli.item import Failed
from mpworker.cli.journal import Checkpoint
from mpworker.cli.output import failure_line, result_line, write_whole

__all__ = ["STDOUT", "Stream"]

STDOUT = "-"
_NUMBER = 1


class Stream:
    """Standard output as a run's output; a context manager, with what a run needs of `mpworker.cli.output.Output`.

    Raises:
        CommandError: Standard output is closed.
    """

    see = "above"

    def __init__(self) -> None:
        try:
            self._results = os.dup(_NUMBER)
        except OSError:
            raise CommandError("standard output (-) is closed") from None
        self._divert(2)
        self.on_terminal = os.isatty(self._results)
        self.known = Checkpoint()
        self.items = self.failed = 0
        self.mark = START

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._divert(self._results)
        os.close(self._results)

    def go_on(self, mark: Mark) -> None:
        """Begin: there is nothing to go on with."""

    def _divert(self, descriptor: int) -> None:
        with suppress(OSError, ValueError, AttributeError):  # closed, by whom ever, or never there
            sys.stdout.flush()
        os.dup2(descriptor, _NUMBER)

    def progress(self) -> str:
        """Say how far the run got."""
        return f"after {self.items:,} items"

    def result(self, text: str, mark: Mark) -> None:
        """Write the next item's result.

        Raises:
            BrokenPipeError: Nobody reads any more.
            CommandError: The write failed.
        """
        try:
            write_whole(self._results, result_line(self.items, text))
        except BrokenPipeError:
            raise
        except OSError as error:
            raise CommandError(f"cannot write standard output: {error.strerror}", ExitCode.BROKEN_OFF) from None
        self._wrote(mark)

    def failure(self, failed: Failed, location: Mapping[str, object], mark: Mark) -> None:
        """Write why the next item has no result."""
        print(failure_line(self.items, failed, location), end="", file=sys.stderr)
        self.failed += 1
        self._wrote(mark)

    def finish(self) -> None:
        """Nothing: no more items are no news to who reads to the end."""

    def _wrote(self, mark: Mark) -> None:
        self.items += 1
        self.mark = mark
