"""``mpworker map``: apply a function to every line or file, on all cores, in a way that survives being killed.

What makes it resumable stands in `mpworker.cli.output`; what an item is, and how an input is known again, in
`mpworker.cli.inputs`; what a child does with one, in `mpworker.cli.item`. This file puts them together.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any

import click

from mpworker import ProcessWorker
from mpworker.checks import check_int, check_seconds
from mpworker.cli.attached import attached, carry_out
from mpworker.cli.errors import CommandError, ExitCode, one_line
from mpworker.cli.inputs import Inputs, Lines, Paths, unreadable
from mpworker.cli.item import Failed, apply_to_line, apply_to_path, check_target
from mpworker.cli.output import Output, OutputPaths
from mpworker.cli.progress import RunProgress
from mpworker.cli.stream import STDOUT, Stream
from mpworker.cli.target import check_importable, make_current_directory_importable, resolve
from mpworker.errors import (
    ConfigurationError,
    MPWorkerError,
    SerializationError,
    StartFailed,
    SupervisorLost,
    WorkerStopped,
)
from mpworker.ipc.codec import MAX_CHUNK_ITEMS
from mpworker.options import N_MAX, RETRIES_MAX

__all__ = ["map_command"]

MESSAGE_LENGTH_MAX = 4_000
"""Characters of an exception's message that are kept: some carry the whole value they complain about."""

_RECONNECT_SECONDS = 60.0

POOL_ERRORS = (StartFailed, SupervisorLost, WorkerStopped)
"""Errors that say something of the pool and nothing of the item: no failures to record, but the end of the run."""


@click.command("map")
@click.argument("target", metavar="PACKAGE.MODULE:FUNCTION")
@click.argument("names", metavar="INPUT...", nargs=-1, required=True)
@click.option(
    "-o",
    "--output",
    required=True,
    metavar="FILE",
    help="Results, as JSON lines in the order of the input; - for standard output.",
)
@click.option("-n", "--processes", type=click.IntRange(min=1), help="Processes; by default one for each core.")
@click.option("--files", is_flag=True, help="Each INPUT is an item: pass its path instead of the lines in it.")
@click.option("--resume", is_flag=True, help="Go on with what an earlier, interrupted run has written.")
@click.option("--overwrite", is_flag=True, help="Throw away what an earlier run has written.")
@click.option(
    "--timeout", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS", help="The longest an item may take."
)
@click.option("--retries", type=click.IntRange(min=0), default=0, help="Further attempts for an item that fails.")
@click.option("--chunksize", type=click.IntRange(min=1), help="Items handed out at a time; by default it adapts.")
@click.option("--preload", multiple=True, metavar="MODULE", help="Import it once, before the processes are forked.")
@click.option(
    "--socket", metavar="PATH", help="Have the children of the supervisor do it that listens there: `mpworker serve`."
)
@click.option("-q", "--quiet", is_flag=True, help="Nothing on standard error but errors.")
def map_command(
    *,
    target: str,
    names: tuple[str, ...],
    output: str,
    processes: int | None,
    files: bool,
    resume: bool,
    overwrite: bool,
    timeout: float | None,
    retries: int,
    chunksize: int | None,
    preload: tuple[str, ...],
    socket: str | None,
    quiet: bool,
) -> ExitCode:
    """Apply a function to each line of the inputs, and write what it returns as JSON lines.

    The function gets a line as text, without its line break; INPUT may be - for standard input. With --files it gets
    each INPUT's path instead, of a file or of a directory (a directory is one item: its path is passed, nothing in it
    is looked for).

    Results go to FILE, say out.jsonl: {"index": 0, "result": ...}, the index being the item's place in the input. Items
    that fail go to out.failed.jsonl with their place, the error's type and its message. A run that was killed, by
    whatever, goes on with --resume: nothing is lost and nothing written twice.

    With -o - results go to standard output, failures to standard error, and nothing can be resumed.

    Exit codes: 0 all went well, 1 some items failed, 2 nothing was done, 3 broken off (resumable), 4 no process could
    be started (resumable), 69 no supervisor listens at --socket, 130 Ctrl-C (resumable), 141 nobody reads standard
    output any more.
    """
    _check_together(output, resume, overwrite, socket is not None and (processes is not None or bool(preload)))
    make_current_directory_importable()
    with ExitStack() as stack:
        # Before the target's module can print anything.
        stream = stack.enter_context(Stream()) if output == STDOUT else None
        resolve(target)
        for module in preload:
            check_importable(module)
        _check_options(processes, timeout, retries, chunksize)
        if socket is not None:  # they find modules in their own places
            carry_out(socket, lambda w: w.submit(check_target, target).result())
        inputs = Paths(names) if files else Lines(names)
        out = stream or stack.enter_context(_open(target, inputs, output, resume=resume, overwrite=overwrite))
        apply = partial(apply_to_path if files else apply_to_line, target)
        # What is said of an item names the user's function.
        apply.__qualname__ = target  # type: ignore[attr-defined]
        before, began = out.items, time.monotonic()
        if out.known.complete and inputs.streams:
            inputs.skip(out.items, out.known.items, out.known.mark)
            inputs.expect_end(out.items)
        if not out.known.complete:
            out.go_on(inputs.skip(out.items, out.known.items, out.known.mark))
            try:
                # At least one further attempt after a crash: else the items that had ended in the dead child, and were
                # not told yet, would fail for what another one has done.
                with (
                    _start(socket, processes, timeout, retries, preload) as worker,
                    RunProgress(inputs.total, quiet=quiet or (stream is not None and stream.on_terminal)) as progress,
                ):
                    outcomes = worker.map(apply, inputs, chunksize=chunksize, return_exceptions=True)
                    _write(worker, outcomes, inputs, out, progress, target)
                out.finish()
            except KeyboardInterrupt:
                raise CommandError(f"interrupted {out.progress()}", ExitCode.INTERRUPTED) from None
            except BrokenPipeError:
                return ExitCode.UNREAD
            except ConfigurationError:
                raise  # of the options, not of the run
            except (CommandError, MPWorkerError) as error:
                code = error.exit_code if isinstance(error, CommandError) else ExitCode.BROKEN_OFF
                if isinstance(error, StartFailed) and out.items == before:
                    code = ExitCode.NOT_STARTED
                how_far = "" if code == ExitCode.NOT_STARTED else f"; broken off {out.progress()}"
                raise CommandError(f"{one_line(error)}{how_far}", code) from error
        if not quiet and (out.failed or sys.stderr.isatty()):
            print(_summary(out, output, before, time.monotonic() - began), file=sys.stderr)
        return ExitCode.SOME_FAILED if out.failed else ExitCode.OK


def _open(target: str, inputs: Inputs, output: str, *, resume: bool, overwrite: bool) -> Output:
    paths = OutputPaths.of(output)
    _refuse_overlap(inputs.names, paths)
    header = {"target": target, "mode": inputs.mode, "inputs": inputs.fingerprint}
    return Output(paths, header, resume=resume, overwrite=overwrite)


def _check_together(output: str, resume: bool, overwrite: bool, steers: bool) -> None:
    """Refuse options that say two things."""
    if resume and overwrite:
        raise click.UsageError("--resume and --overwrite exclude each other")
    if not output:
        raise click.UsageError("--output is empty: name a file, or - for standard output")
    if output == STDOUT and (resume or overwrite):
        raise click.UsageError("--resume and --overwrite are for an --output that is a file; - is standard output")
    if steers:
        raise click.UsageError("--processes and --preload are the supervisor's to say, and --socket names one")


def _check_options(n: int | None, timeout: float | None, retries: int, chunksize: int | None) -> None:
    """Raise what the pool would, before any file is made."""
    check_int("--processes", 1 if n is None else n, 1, N_MAX)
    check_int("--chunksize", 1 if chunksize is None else chunksize, 1, MAX_CHUNK_ITEMS)
    check_int("--retries", retries, 0, RETRIES_MAX)
    if timeout is not None:
        check_seconds("--timeout", timeout)


def _start(
    socket: str | None, n: int | None, timeout: float | None, retries: int, preload: Sequence[str]
) -> ProcessWorker:
    options: dict[str, Any] = {"timeout": timeout, "retries": retries, "crash_retries": max(1, retries)}
    try:
        if socket is not None:
            return attached(socket, "mpworker map", _RECONNECT_SECONDS, **options)
        return ProcessWorker(n, preload=preload, **options)
    except OSError as error:
        raise CommandError(f"no process can be started: {error.strerror}", ExitCode.NOT_STARTED) from error


def _write(
    worker: ProcessWorker,
    outcomes: Iterable[object],
    inputs: Inputs,
    out: Output | Stream,
    progress: RunProgress,
    target: str,
) -> None:
    for number, outcome in enumerate(outcomes):
        mark = inputs.finished()
        if isinstance(outcome, str):
            out.result(outcome, mark)
        elif isinstance(outcome, POOL_ERRORS) and not worker.processes():
            raise outcome  # of our pool: it is gone. Or else a task has met it, in a pool of its own
        else:
            failed = _failed(outcome)
            # The pool counts the items of this run, the output those of all runs.
            message = failed.message.replace(f"item {number} of map({target})", f"item {out.items} of map({target})", 1)
            out.failure(failed._replace(message=message), inputs.locate(out.items), mark)
        progress.update(mark.position, out.items, out.failed)
    if inputs.error:
        raise CommandError(unreadable(inputs.error), ExitCode.BROKEN_OFF)


def _failed(outcome: object) -> Failed:
    if isinstance(outcome, Failed):
        return outcome
    if isinstance(outcome, SerializationError) and outcome.raised_type:
        # What the function raised says more than that it could not be sent, and stays the same when a run is resumed.
        return Failed(outcome.raised_type, outcome.raised_message)
    kind = type(outcome)
    short = kind.__module__ in ("builtins", MPWorkerError.__module__)
    try:
        message = str(outcome)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the __str__ of a stranger's exception
        message = f"<its __str__ raised {type(error).__name__}>"
    if len(message) > MESSAGE_LENGTH_MAX:
        message = f"{message[:MESSAGE_LENGTH_MAX]}... ({len(message):,} characters)"
    return Failed(kind.__qualname__ if short else f"{kind.__module__}.{kind.__qualname__}", message)


def _refuse_overlap(names: Sequence[str], paths: OutputPaths) -> None:
    for path in (paths.results, paths.failures, paths.journal):
        for name in names:
            with suppress(OSError):  # one that isn't there is no other's double
                if path.samefile(name):
                    raise CommandError(f"{name} is an input, and the run would write to it; choose another --output")


def _summary(out: Output | Stream, output: str, before: int, seconds: float) -> str:
    if out.known.complete:
        return f"mpworker: nothing to do: {output} is complete ({out.items:,} items, {out.failed:,} failed)"
    resumed = f", {before:,} of them before" if before else ""
    where = f"{out.failed:,} failed, see {out.see}" if out.failed else "all went well"
    return f"mpworker: {out.items:,} items{resumed} in {seconds:,.1f} s: {where}"
