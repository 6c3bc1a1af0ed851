"""The files of a run: results, failures, and the journal that makes a run resumable.

For ``-o out.jsonl``:

- ``out.jsonl`` has a line ``{"index": 7, "result": ...}`` for each item that went well. The index is the item's place
  in the input, from 0. It is what makes resuming possible (a bare result would not tell which item it belongs to once
  some fail), and what a user joins results to inputs by.
- ``out.failed.jsonl`` has a line ``{"index": 8, "input": "a.txt", "line": 9, "error": "ValueError", "message": ...}``
  for each of the others.
- ``out.jsonl.state`` is the journal: a header that says what the run is (target, mode, inputs' fingerprint), and a
  checkpoint (how many items and how many bytes of each file were on disk, and the input's mark there).

**The invariant.** Lines are written in the items' order, each to its one file, by one unbuffered ``write``. So at any
moment the indexes in both files together are 0, 1, ... k - 1 without a hole, with at most one torn line after them.

**kill -9** costs what was still being computed: a result that came back has been handed to the kernel.

**Power loss** may keep a later write and lose an earlier one. At most once a second (less often on a disk so slow that
this would take more than a tenth of the time), both files are fsynced, and then the journal is replaced: a new file,
fsynced, renamed over the old, directory fsynced. What the journal counts is therefore on disk. Results since then,
about a second's, may be lost, and are computed again; a last result that no other follows waits for the kernel.

**To resume**, both files are read from the checkpoint on, side by side, as long as the next index is found in one of
them on a whole and valid line; both are truncated after the last of these. So a torn line, a hole, and what power loss
left of a page go, and the item k is next. Nothing is lost, nothing is there twice. Where an input is a stream, nothing
but the checkpoint's mark tells that its items are the same: what follows it goes, too, and is computed again. Nothing
is truncated before the input was compared: `Output.go_on` does it.

**Refused**: a run with another target, mode or inputs than the header's; files shorter than the checkpoint; an existing
output without a journal; and, without ``--resume`` or ``--overwrite``, any output that holds something.

**One run at a time** has the output: an ``flock`` on ``out.jsonl``, which the kernel drops with its holder.

The rejected alternative is a file of bare results beside a journal of offsets: the two can disagree after power loss
unless each item is fsynced, and the results alone can't be checked.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import stat
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from mpworker.cli.errors import CommandError, ExitCode
from mpworker.cli.inputs import STREAM, Mark
from mpworker.cli.item import Failed
from mpworker.cli.journal import VERSION, Checkpoint, difference, read_journal, write_journal

__all__ = ["Output", "OutputPaths", "failure_line", "result_line", "write_whole"]

SYNC_INTERVAL_MIN = 1.0
"""Seconds between two checkpoints, at least."""
SYNC_SHARE_MAX = 0.1
"""The share of the run's time that checkpoints may take, at most."""
_LINE = re.compile(rb'\{"index": (\d+), .+\}\n', re.DOTALL)


@dataclass(frozen=True)
class OutputPaths:
    """Where a run writes.

    Attributes:
        results: The path given by the user.
        failures: ``out.failed.jsonl`` for ``out.jsonl``.
        journal: ``out.jsonl.state`` for ``out.jsonl``.
    """

    results: Path
    failures: Path
    journal: Path

    @classmethod
    def of(cls, results: str | Path) -> Self:
        """Derive the other names from that of the results."""
        path = Path(results)
        if not path.name:
            raise CommandError(f"cannot write {path}: it is a directory")
        return cls(path, path.with_name(f"{path.stem}.failed{path.suffix}"), path.with_name(f"{path.name}.state"))


class Output:
    """An open and locked output; a context manager that closes it.

    Leaving it early for whatever reason, Ctrl-C and a full disk among them, writes no checkpoint: the files are then as
    after kill -9, which is the one case that has to work.

    Args:
        paths: The files.
        header: What the run is, as JSON has it: ``target``, ``mode`` and ``inputs``, a list for each input.
        resume: Go on with what is there; begin where nothing is.
        overwrite: Throw away what is there.

    Raises:
        CommandError: The output is not to be touched (see the module), or can't be.

    Attributes:
        known: The checkpoint that the journal had; that of a beginning for a new run.
        items: Items written so far.
        failed: How many of them to the failures.
        mark: The input's mark after these, from `go_on` on.
    """

    def __init__(
        self, paths: OutputPaths, header: Mapping[str, object], *, resume: bool = False, overwrite: bool = False
    ) -> None:
        self.paths = paths
        self._header: dict[str, Any] = json.loads(json.dumps({"version": VERSION, **header}))
        self._results = self._failures = -1
        try:
            if resume and paths.journal.exists() and not paths.results.exists():
                how = "is gone, though its journal is there; start anew with --overwrite"
                raise CommandError(f"cannot resume: {paths.results} {how}")
            self._results = _open(paths.results)
            self._lock()
            before = self._judge(resume=resume, overwrite=overwrite)
            self._failures = _open(paths.failures)
            self.known = before or Checkpoint()
            if before and not before.complete:
                self._position(self._recover(before))
            else:
                self._position(self.known)
            if before is None:
                self.sync()
        except OSError as error:
            self.close()
            raise CommandError(_unwritable(error, paths.results)) from None
        except BaseException:
            self.close()
            raise
        self._sync_at = time.monotonic() + SYNC_INTERVAL_MIN

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def go_on(self, mark: Mark) -> None:
        """Throw away what is in the files beyond `items`; the next item follows these.

        Args:
            mark: The input's mark there.

        Raises:
            CommandError: A file cannot be truncated.
        """
        self.mark = mark
        try:
            os.ftruncate(self._results, self._results_bytes)
            os.ftruncate(self._failures, self._failures_bytes)
        except OSError as error:
            raise CommandError(_unwritable(error, self.paths.results)) from None

    @property
    def see(self) -> Path:
        """Where the failures are."""
        return self.paths.failures

    def progress(self) -> str:
        """Say how far the run got, and what to do."""
        return f"after {self.items:,} items; the same command with --resume goes on from there"

    def close(self) -> None:
        """Close the files and let go of the lock; a second call does nothing."""
        for descriptor in (self._failures, self._results):
            if descriptor >= 0:
                os.close(descriptor)
        self._failures = self._results = -1

    def result(self, text: str, mark: Mark) -> None:
        """Write the next item's result.

        Args:
            text: It, as one line of ASCII JSON.
            mark: The input's mark after the item.

        Raises:
            CommandError: The write failed.
        """
        self._results_bytes += self._write(self._results, self.paths.results, result_line(self.items, text))
        self._wrote(mark)

    def failure(self, failed: Failed, location: Mapping[str, object], mark: Mark) -> None:
        """Write why the next item has no result.

        Args:
            failed: Why.
            location: Where the item came from.
            mark: The input's mark after the item.

        Raises:
            CommandError: The write failed.
        """
        line = failure_line(self.items, failed, location)
        self._failures_bytes += self._write(self._failures, self.paths.failures, line)
        self.failed += 1
        self._wrote(mark)

    def finish(self) -> None:
        """Record that there are no more items.

        Raises:
            CommandError: The write failed.
        """
        try:
            self.sync(complete=True)
        except OSError as error:
            raise _broken_off(error, self.paths.journal) from None

    def sync(self, *, complete: bool = False) -> None:
        """Bring all of it to the disk, then the journal that says so."""
        began = time.monotonic()
        os.fsync(self._results)
        os.fsync(self._failures)
        at = Checkpoint(self.items, self.failed, self._results_bytes, self._failures_bytes, self.mark, complete)
        write_journal(self.paths.journal, self._header, at)
        now = time.monotonic()
        self._sync_at = now + max(SYNC_INTERVAL_MIN, (now - began) * (1 / SYNC_SHARE_MAX - 1))

    def _lock(self) -> None:
        if not stat.S_ISREG(os.fstat(self._results).st_mode):
            raise CommandError(f"{self.paths.results} is not a regular file: a run could not be resumed on it")
        try:
            fcntl.flock(self._results, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CommandError(f"another run is writing {self.paths.results}") from None

    def _judge(self, *, resume: bool, overwrite: bool) -> Checkpoint | None:
        """Return the checkpoint to go on from, or None to begin with empty files; refuse what would lose something."""
        results, failures = _size(self.paths.results), _size(self.paths.failures)
        if overwrite:
            # The journal goes first: what it says must not outlive what it speaks of.
            self.paths.journal.unlink(missing_ok=True)
            os.truncate(self.paths.results, 0)
            if failures:
                os.truncate(self.paths.failures, 0)
            return None
        occupied = next((path for path in (self.paths.results, self.paths.failures) if _size(path)), None)
        if not resume:
            if occupied:
                raise CommandError(f"{occupied} exists: --resume goes on with it, --overwrite throws it away")
            return None
        journal = read_journal(self.paths.journal)
        if journal is None:
            if occupied:
                raise CommandError(
                    f"cannot resume: {occupied} has no journal {self.paths.journal} beside it; "
                    "--overwrite throws it away"
                )
            return None
        header, known = journal
        if unlike := difference(header, self._header):
            raise CommandError(
                f"cannot resume {self.paths.results}: {unlike}; "
                "give what it was started with, or start anew with --overwrite"
            )
        for path, size, bytes_known in (
            (self.paths.results, results, known.results_bytes),
            (self.paths.failures, failures, known.failures_bytes),
        ):
            if size < bytes_known:
                how = f"has {size} bytes, but its journal knows of {bytes_known}: it was changed since;"
                raise CommandError(f"cannot resume: {path} {how} start anew with --overwrite")
        return known

    def _recover(self, known: Checkpoint) -> Checkpoint:
        """How far the files go: what follows the checkpoint without a hole counts, unless an input is a stream."""
        if any(kind == STREAM for kind, *_ in self._header["inputs"]):
            return known
        results = _whole_lines(self.paths.results, known.results_bytes)
        failures = _whole_lines(self.paths.failures, known.failures_bytes)
        items, failed = known.items, known.failed
        results_bytes, failures_bytes = known.results_bytes, known.failures_bytes
        result, failure = next(results, _NO_LINE), next(failures, _NO_LINE)
        while True:
            if result.item == items:
                results_bytes = result.end
                result = next(results, _NO_LINE)
            elif failure.item == items:
                failures_bytes = failure.end
                failure = next(failures, _NO_LINE)
                failed += 1
            else:
                break
            items += 1
        return replace(known, items=items, failed=failed, results_bytes=results_bytes, failures_bytes=failures_bytes)

    def _position(self, at: Checkpoint) -> None:
        self.items, self.failed = at.items, at.failed
        self._results_bytes, self._failures_bytes = at.results_bytes, at.failures_bytes
        self.mark = at.mark

    def _write(self, descriptor: int, path: Path, line: str) -> int:
        try:
            return write_whole(descriptor, line)
        except OSError as error:
            raise _broken_off(error, path) from None

    def _wrote(self, mark: Mark) -> None:
        self.items += 1
        self.mark = mark
        if time.monotonic() >= self._sync_at:
            try:
                self.sync()
            except OSError as error:
                raise _broken_off(error, self.paths.journal) from None


def result_line(index: int, text: str) -> str:
    """Return the line of an item that went well; `text` is its result as JSON."""
    return f'{{"index": {index}, "result": {text}}}\n'


def failure_line(index: int, failed: Failed, location: Mapping[str, object]) -> str:
    """Return the line of an item that has no result."""
    return json.dumps({"index": index, **location, "error": failed.error, "message": failed.message}) + "\n"


def write_whole(descriptor: int, line: str) -> int:
    """Write a line of ASCII, and return its length."""
    data = line.encode("ascii")
    written = os.write(descriptor, data)
    while written < len(data):  # a disk that fills up takes a part, and refuses the rest
        written += os.write(descriptor, data[written:])
    return written


class _Line(NamedTuple):
    item: int
    end: int


_NO_LINE = _Line(-1, -1)


def _whole_lines(path: Path, start: int) -> Iterator[_Line]:
    """Yield the index and the end of each line from an offset on, up to the first that is torn or no such line."""
    with path.open("rb") as file:
        file.seek(start)
        end = start
        for line in file:
            end += len(line)
            whole = _LINE.fullmatch(line)
            if not whole or not _is_json(line):
                return
            yield _Line(int(whole[1]), end)


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    except RecursionError:
        pass  # some can be written and not be read: of those, the beginning and the end have to do
    return True


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _broken_off(error: OSError, path: Path) -> CommandError:
    return CommandError(_unwritable(error, path), ExitCode.BROKEN_OFF)


def _unwritable(error: OSError, path: Path) -> str:
    return f"cannot write {error.filename or path}: {error.strerror}"
