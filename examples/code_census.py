"""Which is the most complex function on this machine?

Parses every ``.py`` file of the running interpreter's standard library and site-packages, measures each function in a
pool of processes, and prints the ten most complex ones, what could not be parsed, and what the pool gained:

    python examples/code_census.py                  # everything
    python examples/code_census.py -n 4 --limit 500 # the first 500 files, in 4 processes
    python examples/code_census.py src tests        # other places

**Complexity** is McCabe's cyclomatic number (T. J. McCabe, "A Complexity Measure", IEEE Transactions on Software
Engineering SE-2(4), 1976), counted as he does for structured programs: one, plus one for each decision. A decision is
an ``if``, ``elif`` or conditional expression, a ``for`` or ``while``, an ``except``, an ``assert``, a ``case`` unless
it always matches, each ``for`` and each ``if`` in a comprehension, and each ``and`` and ``or`` (he counts the
conditions of a compound predicate one by one). ``else``, ``finally``, ``with`` and ``return`` decide nothing. A
function within a function is measured for itself, and a lambda as part of the function around it.

**Nesting** is how many compound statements of the function enclose its deepest statement; an ``elif`` is as deep as its
``if``. **Lines** are those from ``def`` to the last one.
"""

from __future__ import annotations

import argparse
import ast
import gc
import site
import sys
import sysconfig
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from heapq import nlargest
from pathlib import Path
from statistics import median
from typing import NamedTuple

from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from mpworker import ProcessWorker

TOP = 10
SAMPLE_BYTES = 4_000_000  # about two seconds for one process
ROUNDS = 3

FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)
DECISION = (ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.Assert, ast.comprehension)
COMPOUND = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.Try, ast.TryStar, ast.With, ast.AsyncWith, ast.Match)


class Function(NamedTuple):
    """A function's measures; the most complex is the greatest."""

    complexity: int
    nesting: int
    lines: int
    name: str
    line: int


class Census(NamedTuple):
    """What one file adds to the totals, and the best of its functions."""

    bytes: int
    lines: int
    functions: int
    top: list[Function]


def census(path: Path) -> Census:
    """Measure all functions of a file. This is what runs in the pool; what it raises is the file's result."""
    source = path.read_bytes()  # bytes, for then the file's own coding line decides
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other people's invalid escapes
        tree = ast.parse(source, path)
    functions = [measure(node) for node in ast.walk(tree) if isinstance(node, FUNCTION)]
    return Census(len(source), len(source.splitlines()), len(functions), nlargest(TOP, functions))


def measure(function: ast.FunctionDef | ast.AsyncFunctionDef) -> Function:
    """Measure one function, as the module's docstring says."""
    complexity, nesting = 1, 0
    # A stack of our own: generated code nests deeper than Python recurses.
    stack: list[tuple[ast.AST, int]] = [(statement, 0) for statement in function.body]
    while stack:
        node, depth = stack.pop()
        if isinstance(node, (*FUNCTION, ast.ClassDef)):
            continue
        complexity += decisions(node)
        nesting = max(nesting, depth)
        inner = depth + isinstance(node, COMPOUND)
        stack += [(child, depth if is_elif(node, child) else inner) for child in ast.iter_child_nodes(node)]
    end = function.end_lineno or function.lineno
    return Function(complexity, nesting, end - function.lineno + 1, function.name, function.lineno)


def decisions(node: ast.AST) -> int:
    """Return by how much one node raises the complexity of its function."""
    if isinstance(node, ast.BoolOp):
        return len(node.values) - 1
    if isinstance(node, ast.match_case):
        always = isinstance(node.pattern, ast.MatchAs) and node.pattern.pattern is None and node.guard is None
        return int(not always)
    return isinstance(node, DECISION) + (len(node.ifs) if isinstance(node, ast.comprehension) else 0)


def is_elif(node: ast.AST, child: ast.AST) -> bool:
    """Tell ``elif`` from an ``if`` within ``else``: the tree has both alike, but only an ``elif`` is not indented."""
    return (
        isinstance(node, ast.If)
        and isinstance(child, ast.If)
        and node.orelse == [child]
        and child.col_offset == node.col_offset
    )


def python_files(roots: Iterable[Path]) -> list[Path]:
    """Return the Python files under some directories, or the files themselves."""
    found = {path for root in roots for path in (root.rglob("*.py") if root.is_dir() else [root])}
    return sorted(path for path in found if path.is_file())


def installed_files() -> list[Path]:
    """Return the files of the standard library and of site-packages."""
    library = {Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib")}
    # In a virtual environment the standard library has a site-packages of its own, which the interpreter doesn't use.
    files = [path for path in python_files(library) if "site-packages" not in path.parts]
    files += python_files(map(Path, site.getsitepackages()))
    # A file that a link names a second time, as some distributions arrange theirs, is still one file.
    return list({path.resolve(): path for path in reversed(files)}.values())[::-1]


def speed_up(worker: ProcessWorker, files: Sequence[Path]) -> str:
    """Measure what the pool gains: the same sample of files, in turn in this process and in the pool."""
    step = max(1, round(sum(path.stat().st_size for path in files) / SAMPLE_BYTES))
    sample = files[::step]

    def alone() -> None:
        for path in sample:
            with suppress(SyntaxError, ValueError, RecursionError, MemoryError, OSError):  # reported already
                census(path)

    def pooled() -> None:
        for _ in worker.map(census, sample, return_exceptions=True):
            pass

    gc.freeze()  # or this process would look slow for having to search all that the census left in its memory
    rounds = [(seconds(alone), seconds(pooled)) for _ in range(ROUNDS)]
    one, many = (median(times) for times in zip(*rounds, strict=True))
    which = "all files" if step == 1 else f"every {step}th file"
    return (
        f"{one / many:.2f} times one process ({len(sample):,} files, {which}: "
        f"{one:.2f} s alone, {many:.2f} s in the warm pool; medians of {ROUNDS} rounds in turn)"
    )


def seconds(run: Callable[[], None]) -> float:
    """Return how long a call takes."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def main() -> None:
    """Take the census and print it."""
    parser = argparse.ArgumentParser(description="Find the most complex functions among the installed Python files.")
    parser.add_argument("paths", nargs="*", type=Path, help="other files or directories to read")
    parser.add_argument("-n", type=int, metavar="N", help="processes (default: one for each core)")
    parser.add_argument("--limit", type=int, metavar="N", help="read only the first N files")
    options = parser.parse_args()
    files = (python_files(options.paths) if options.paths else installed_files())[: options.limit]
    if not files:
        parser.error("there are no Python files in the given paths")

    # On a terminal as wide as it is; in a file or a pipe, wide enough for a path.
    out = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    done: list[tuple[Path, Census]] = []
    failed: list[tuple[Path, Exception]] = []
    with ProcessWorker(options.n) as worker:
        began = time.perf_counter()
        outcomes = zip(files, worker.map(census, files, return_exceptions=True), strict=True)
        bar = Console(stderr=True)
        for path, outcome in track(outcomes, "Reading", len(files), console=bar, disable=not bar.is_terminal):
            if isinstance(outcome, Exception):
                failed.append((path, outcome))
            else:
                done.append((path, outcome))
        took = time.perf_counter() - began

        out.print(table(done))
        for path, error in failed:
            why = f"{type(error).__name__}: {error}".rstrip(": ")  # a MemoryError has no message
            out.print(f"failed: {path}: {why}", markup=False, soft_wrap=True)
        totals = [sum(column) for column in zip(*(entry[:3] for _, entry in done), strict=True)] or [0, 0, 0]
        out.print(
            f"\n{len(files):,} files ({len(failed)} failed), {totals[2]:,} functions, {totals[1]:,} lines, "
            f"{totals[0]:,} bytes in {took:.1f} s: {len(files) / took:,.0f} tasks a second"
        )
        out.print(f"speed-up: {speed_up(worker, files)}", soft_wrap=True)


def table(done: Iterable[tuple[Path, Census]]) -> Table:
    """Return the most complex functions of all files as a table."""
    result = Table(title=f"The {TOP} most complex functions", box=box.SIMPLE, title_justify="left")
    for heading in ("complexity", "nesting", "lines"):
        result.add_column(heading, justify="right")
    result.add_column("function", overflow="fold")
    result.add_column("where", overflow="fold")
    for function, path in nlargest(TOP, ((function, path) for path, entry in done for function in entry.top)):
        numbers = (str(number) for number in function[:3])
        result.add_row(*numbers, function.name, f"{shortened(path)}:{function.line}")
    return result


def shortened(path: Path) -> str:
    """Return a path as seen from where the interpreter imports it."""
    roots = [entry for entry in sys.path if entry and path.is_relative_to(entry)]
    return str(path.relative_to(max(roots, key=len))) if roots else str(path)


if __name__ == "__main__":
    main()
