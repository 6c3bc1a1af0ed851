"""``mpworker bench``: This pool against others that are installed, on this machine."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping

import click
from rich.console import Console

from mpworker.bench import comparing, machine, page, peers, rounds, run, tables
from mpworker.bench.measure import Settings
from mpworker.bench.suite import SUITE
from mpworker.checks import check_int, check_number
from mpworker.cli.errors import CommandError, ExitCode
from mpworker.cli.files import check_distinct
from mpworker.options import N_MAX

__all__ = ["bench_command", "command"]

TABLE_WIDTH_MIN = 150
ROUNDS_MAX = 1_000
FULL = {"rounds": 9, "scale": 1.0, "idle_seconds": 60.0}
QUICK = {"rounds": 3, "scale": 0.1, "idle_seconds": 5.0}


def command(suite: Mapping[str, str], default: Mapping[str, str]) -> click.Command:
    """The command that takes benchmarks of this suite.

    Args:
        suite: Where each is, by name.
        default: Those of it that are taken if none is named.
    """

    @click.command("bench", help=f"{__doc__.partition(': ')[2]}\n\nNAMES are of {', '.join(suite)}; "
                   f"all{'' if suite == default else ' but those of developers'} without one.")  # fmt: skip
    @click.argument("names", nargs=-1)
    @click.option("--rounds", type=int, help=f"Interleaved rounds. [{FULL['rounds']}]")
    @click.option("--peers", "wanted", metavar="NAME,...", help="Of ProcessPoolExecutor, multiprocessing.Pool, loky, "
                  "pebble, mpire, joblib, ray, dask. [all that are installed]")  # fmt: skip
    @click.option("-n", "--workers", type=int, default=2, show_default=True, help="Of each pool.")
    @click.option("--quick", is_flag=True, help="A tenth of the tasks and three rounds: a first look.")
    @click.option("--scale", type=float, help="A factor on the number of tasks and the size of payloads. [1]")
    @click.option("--idle-seconds", type=float, help="How long idle pools are watched. [60]")
    @click.option("--json", "json_path", metavar="FILE", help="All rounds, for --compare.")
    @click.option("--html", "html_path", metavar="FILE", help="A report with plots, in one file.")
    @click.option("--compare", "old_path", metavar="OLD.json", help="Say what has moved since.")
    @click.option("-q", "--quiet", is_flag=True, help="Nothing on standard error but errors.")
    def bench(
        *,
        names: tuple[str, ...],
        rounds: int | None,
        wanted: str | None,
        workers: int,
        quick: bool,
        scale: float | None,
        idle_seconds: float | None,
        json_path: str | None,
        html_path: str | None,
        old_path: str | None,
        quiet: bool,
    ) -> ExitCode:
        for name in names:
            if name not in suite:
                raise click.UsageError(f"no benchmark {name!r}: there are {', '.join(suite)}")
        full = QUICK if quick else FULL
        count = check_int("rounds", full["rounds"] if rounds is None else rounds, 1, ROUNDS_MAX)
        settings = Settings(
            check_int("workers", workers, 1, N_MAX),
            check_number("scale", full["scale"] if scale is None else scale, 1e-6, 1e3),
            check_number("idle-seconds", full["idle_seconds"] if idle_seconds is None else idle_seconds, 0.001, 1e6),
        )
        there, absent = peers.chosen(None if wanted is None else [name for name in wanted.split(",") if name])
        check_distinct({"--compare": old_path, "--json": json_path, "--html": html_path})
        old = None if old_path is None else run.read(old_path)
        for path in (json_path, html_path):
            if path is not None:
                _writable(path)
        return _bench(suite, names or tuple(default), count, settings, there, absent, old, json_path, html_path, quiet)

    return bench


def _writable(path: str) -> None:
    """Fail now, and not after all has been measured."""
    try:
        with open(path, "a"):
            pass
    except OSError as error:
        raise CommandError(f"{error.filename}: {error.strerror}", ExitCode.USAGE) from error


def _bench(
    suite: Mapping[str, str],
    names: tuple[str, ...],
    count: int,
    settings: Settings,
    there: list[str],
    absent: list[str],
    old: dict[str, object] | None,
    json_path: str | None,
    html_path: str | None,
    quiet: bool,
) -> ExitCode:
    described = machine.describe(there)
    taken: dict[str, rounds.Taken] = {}
    interrupted = False
    try:
        rounds.take(suite, names, there, settings, count, _progress(quiet), taken)
    except KeyboardInterrupt:  # what has been measured is told
        interrupted = True
    if not quiet and sys.stderr.isatty():
        sys.stderr.write("\r\x1b[K")
    whole = run.Run(described, settings, taken, absent)
    moves = comparing.compared(old, whole) if old is not None else []
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, TABLE_WIDTH_MIN)
    tables.show(whole, console)
    if old is not None:
        tables.show_comparison(old, whole, moves, console)
    try:
        if json_path is not None:
            run.write(whole, json_path)
        if html_path is not None:
            page.document(whole, old, moves).write(html_path)
    except OSError as error:
        raise CommandError(f"{error.filename}: {error.strerror}", ExitCode.USAGE) from error
    if interrupted:
        return ExitCode.INTERRUPTED
    # A failure of a peer is for who makes it.
    ours = any(set(each.failed) - (set(peers.PEERS) - {peers.MPWORKER}) for each in taken.values())
    return ExitCode.SOME_FAILED if ours else ExitCode.OK


def _progress(quiet: bool) -> Callable[[str, int, int, str], None]:
    def told(name: str, number: int, count: int, contender: str) -> None:
        if quiet:
            return
        text = f"{name}: round {number} of {count}{f', {contender}' if contender else ''}"
        sys.stderr.write(f"\r\x1b[K{text}" if sys.stderr.isatty() else f"{text}\n")
        sys.stderr.flush()

    return told


bench_command = command(SUITE, SUITE)
