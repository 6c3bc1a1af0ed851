"""The items of a run: the lines of its inputs, or the inputs themselves.

A run that is resumed must be sure to meet the same items again. Two things see to that:

- the **fingerprint**, compared before anything is started: each input's absolute path and, for a regular file, its
  size and modification time;
- the **mark** of each item: how far into the input it ends, with a running CRC-32 of all that came before. The output
  keeps the mark of the last item it has on disk, and `Inputs.skip` finds it again. This covers what has no
  fingerprint: standard input, a FIFO, a process substitution. A CRC guards against mistakes, not against malice.

The iterator runs ahead of the results by as much as `ProcessWorker.map` buffers, so marks wait in a queue of that
length until their results are written. Nothing else grows with the input.
"""

from __future__ import annotations

import os
import stat
import sys
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import IO, NamedTuple
from zlib import crc32

from mpworker.cli.errors import CommandError, ExitCode
from mpworker.cli.item import LINE_BYTES_MAX

__all__ = ["START", "STREAM", "Inputs", "Lines", "Mark", "Paths", "unreadable"]

STDIN = "-"
STREAM = "stream"
"""The `Identity.kind` of an input that can't be known again beforehand."""


class Mark(NamedTuple):
    """A place between two items.

    Attributes:
        position: Bytes of input before it (`Lines`), or items before it (`Paths`).
        crc: CRC-32 of all input before it.
    """

    position: int
    crc: int


START = Mark(0, 0)


class Inputs:
    """A run's items in order; one pass. See `Lines` and `Paths`."""

    mode: str
    """What an item is, for the fingerprint."""
    total: int | None
    """The last item's `Mark.position`, where it can be known beforehand."""

    def __init__(self, names: Sequence[str], *, directories: bool) -> None:
        self.names = list(names)
        self.fingerprint = [_identify(name, directories=directories) for name in self.names]
        self.error: OSError | None = None
        """Why the items ended early, where they did. Kept instead of raised: the iterator runs inside `map`."""
        self._marks: deque[Mark] = deque()
        self._items = self._read()

    def __iter__(self) -> Iterator[bytes | None]:
        return self._items

    def _read(self) -> Iterator[bytes | None]:
        raise NotImplementedError

    def locate(self, index: int) -> dict[str, object]:
        """Return where an item that has been read came from, in the words of the failures file."""
        raise NotImplementedError

    def finished(self) -> Mark:
        """Return the mark of the oldest item not yet asked about: called once for each result, in order."""
        return self._marks.popleft()

    def skip(self, count: int, known: int, mark: Mark) -> Mark:
        """Pass over the items that an earlier run has done.

        Args:
            count: How many it has done.
            known: After how many of them `mark` was taken.
            mark: What `finished` returned then.

        Returns:
            The mark after all of them.

        Raises:
            CommandError: The input has other items than it had, or fewer, or can't be read.
        """
        at = START
        for done in range(count + 1):
            if done == known and at != mark:
                raise CommandError(
                    f"the first {known} input items are not those of the run to resume: "
                    "give the same input again, or start anew with --overwrite"
                )
            if done == count:
                break
            if next(self._items, self) is self:
                if self.error:
                    raise CommandError(unreadable(self.error), ExitCode.BROKEN_OFF)
                raise CommandError(
                    f"the input ends after {done} items, but the run to resume had done {count}: "
                    "give the same input again, or start anew with --overwrite"
                )
            at = self._marks.popleft()
        return at

    @property
    def streams(self) -> bool:
        """Whether the fingerprint leaves open if the items are the same."""
        return any(identity.kind == STREAM for identity in self.fingerprint)

    def expect_end(self, count: int) -> None:
        """See that there are no more items than an earlier run, which is complete, has done.

        Raises:
            CommandError: There are, or the input can't be read.
        """
        if next(self._items, self) is not self:
            raise CommandError(
                f"the input goes on after the {count} items of the run to resume, which is complete: "
                "give the same input again, or start anew with --overwrite"
            )
        if self.error:
            raise CommandError(unreadable(self.error), ExitCode.BROKEN_OFF)


class Lines(Inputs):
    r"""The lines of text files, and of standard input where the name is ``-``.

    A line ends with ``\n`` (a ``\r`` before it belongs to the ending); the last may lack it; an empty line is an item.

    Args:
        names: Paths, and at most one ``-``.

    Raises:
        CommandError: One can't be read.
    """

    mode = "lines"

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(names, directories=False)
        if self.names.count(STDIN) > 1:
            raise CommandError("standard input (-) is given more than once")
        if STDIN in self.names and sys.stdin is None:
            raise CommandError("standard input (-) is closed")
        sizes = [identity.size for identity in self.fingerprint if identity.kind == "file"]
        self.total = sum(sizes) if len(sizes) == len(self.names) else None
        self._first_items: list[int] = []  # for each input begun, the index of its first item

    def _read(self) -> Iterator[bytes | None]:
        index = position = crc = 0
        for name in self.names:
            self._first_items.append(index)
            try:
                with _open(name) as file:
                    while line := file.readline(LINE_BYTES_MAX):
                        position += len(line)
                        crc = crc32(line, crc)
                        item: bytes | None = line
                        while len(line) >= LINE_BYTES_MAX and not line.endswith(b"\n"):
                            item = None
                            line = file.readline(LINE_BYTES_MAX)
                            position += len(line)
                            crc = crc32(line, crc)
                        self._marks.append(Mark(position, crc))
                        index += 1
                        yield item
            except OSError as error:
                error.filename = error.filename or name
                self.error = error
                return

    def locate(self, index: int) -> dict[str, object]:
        """Return the input's name and the line's number, from 1."""
        # Inputs without lines share their first index with the next one: the last of them has the item.
        which = bisect_right(self._first_items, index) - 1
        return {"input": self.names[which], "line": index - self._first_items[which] + 1}


class Paths(Inputs):
    """The inputs themselves, each an item: files, and directories for a target that knows what to do with them.

    Args:
        names: Paths.

    Raises:
        CommandError: One can't be read.
    """

    mode = "files"

    def __init__(self, names: Sequence[str]) -> None:
        if STDIN in names:
            raise CommandError("--files takes paths; a list of paths on standard input (-) is read without --files")
        super().__init__(names, directories=True)
        self.total = len(self.names)

    def _read(self) -> Iterator[bytes | None]:
        crc = 0
        for done, name in enumerate(self.names, 1):
            path = os.fsencode(name)
            crc = crc32(path, crc)
            self._marks.append(Mark(done, crc))
            yield path

    def locate(self, index: int) -> dict[str, object]:
        """Return the path."""
        return {"input": self.names[index]}


def unreadable(error: OSError) -> str:
    """Say that an input can't be read, and why."""
    return f"cannot read {os.fsdecode(error.filename or '')}: {error.strerror}"


def _open(name: str) -> AbstractContextManager[IO[bytes]]:
    return nullcontext(sys.stdin.buffer) if name == STDIN else open(name, "rb")


class Identity(NamedTuple):
    """What tells one input from another, or from itself before a change; JSON has it as a list.

    Attributes:
        kind: ``file``, ``directory`` or `STREAM`.
        path: The absolute path; empty for a stream, as a process substitution has another one each time.
        size: A file's bytes; otherwise 0.
        mtime_ns: A file's modification time; otherwise 0.
    """

    kind: str
    path: str = ""
    size: int = 0
    mtime_ns: int = 0


def _identify(name: str, *, directories: bool) -> Identity:
    """Identify an input and check that it can be read, as far as that is possible without reading."""
    if name == STDIN:
        return Identity(STREAM)
    try:
        status = os.stat(name)
        if stat.S_ISREG(status.st_mode):
            open(name, "rb").close()
            return Identity("file", os.path.abspath(name), status.st_size, status.st_mtime_ns)
        if not stat.S_ISDIR(status.st_mode):
            # Opened once only, when its turn comes: a FIFO's writer would take a second reader's leaving for the end.
            return Identity(STREAM)
        os.scandir(name).close()
    except OSError as error:
        raise CommandError(unreadable(error)) from None
    if not directories:
        raise CommandError(f"{name} is a directory; --files would pass its path as an item")
    return Identity("directory", os.path.abspath(name))
