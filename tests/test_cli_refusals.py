"""What ``mpworker map`` refuses, before anything is started."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from commands import numbers, results, run

from mpworker.cli import app
from mpworker.cli import map as map_module
from mpworker.cli.errors import ExitCode
from mpworker.cli.inputs import Lines
from mpworker.cli.output import Output, OutputPaths


@pytest.fixture
def refused(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command line that has to be refused; return its one line."""

    def start(*_: object, **__: object) -> None:
        pytest.fail("a pool was started")

    monkeypatch.setattr(map_module, "ProcessWorker", start)

    def refuse(*arguments: object, code: int = ExitCode.USAGE) -> str:
        files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        assert app.run([str(argument) for argument in arguments]) == code
        assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() if path in files} == files
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1
        assert captured.err.startswith("mpworker: ")
        return captured.err.removeprefix("mpworker: ").removesuffix("\n")

    return refuse


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("tasks", "target 'tasks' names no function: write tasks:FUNCTION"),
        ("tasks:", "target 'tasks:' names no function: write tasks:FUNCTION"),
        (":echo", "target ':echo' names no function: write MODULE:echo"),
        ("tasks.py", "target 'tasks.py' names no function: write tasks:FUNCTION"),
        ("./tasks.py", "target './tasks.py' names no function: write tasks:FUNCTION"),
        ("lib/tasks.py", "target 'lib/tasks.py' names no function: write lib.tasks:FUNCTION"),
        ("tasks.py:echo", "target 'tasks.py:echo' names a file: write tasks:echo"),
        ("lib/tasks:echo", "target 'lib/tasks:echo' names a file: write lib.tasks:echo"),
        ("/lib/tasks.py:f", "target '/lib/tasks.py:f' names a file: write tasks:f, in the directory /lib"),
        ("../tasks.py", "target '../tasks.py' names no function: write tasks:FUNCTION, in the directory .."),
        ("tasks.echo", "target 'tasks.echo' names no function: write tasks:echo"),
        ("no.such", "target 'no.such' names no function: write no.such:FUNCTION"),
        ("xml.dom", "target 'xml.dom' names no function: write xml.dom:FUNCTION"),
        ("broken.f", "target 'broken.f' names no function: write broken:f"),
        ("tasks:missing", "target 'tasks:missing': module 'tasks' has no attribute 'missing'"),
        ("tasks:Times.three", "target 'tasks:Times.three': <class 'tasks.Times'> has no attribute 'three'"),
        ("tasks:not_callable", "target 'tasks:not_callable' is not callable: it is of type int"),
        ("tasks:later", "target 'tasks:later' is asynchronous; a function that returns its result is needed"),
        ("no_such:f", "cannot import 'no_such': there is no module 'no_such' on sys.path"),
        ("tasks.sub:f", "cannot import 'tasks.sub': there is no module 'tasks.sub' on sys.path"),
        ("broken:f", "cannot import 'broken': ZeroDivisionError: division by zero (at {folder}/broken.py:2)"),
        ("syntax:f", "cannot import 'syntax': SyntaxError: "),
        ("needy:f", "cannot import 'needy': ModuleNotFoundError: No module named 'no_such' (at {folder}/needy.py:1)"),
        ("script:f", "cannot import 'script': SystemExit: 3 (at {folder}/script.py:1)"),
    ],
)
def test_a_target_that_cannot_be_used(folder: Path, refused: Callable[..., str], target: str, message: str) -> None:
    Path("broken.py").write_text("x = 0\ny = 1 / x\n")
    Path("syntax.py").write_text("def f(:\n")
    Path("needy.py").write_text("import no_such\n")
    Path("script.py").write_text("raise SystemExit(3)\n")
    numbers(1)
    assert refused("map", target, "in.txt", "-o", "out.jsonl").startswith(message.format(folder=folder))
    assert not Path("out.jsonl").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.txt"], "cannot read missing.txt: No such file or directory"),
        (["in.txt", "."], ". is a directory; --files would pass its path as an item"),
        (["--files", "missing.txt"], "cannot read missing.txt: No such file or directory"),
        (["--files", "-"], "--files takes paths; a list of paths on standard input (-) is read without --files"),
        (["-", "-"], "standard input (-) is given more than once"),
        (["in.txt", "--preload", "no.such"], "--preload no.such: there is no module of that name on sys.path"),
        (["in.txt", "--preload", "bad.module"], "--preload bad.module: ZeroDivisionError: division by zero"),
        (["in.txt", "-o", ""], "--output is empty: name a file, or - for standard output (see 'mpworker map --help')"),
        (["in.txt", "-o", "-", "--resume"], "--resume and --overwrite are for an --output that is a file; - is"),
        (["in.txt", "-o", "-", "--overwrite"], "--resume and --overwrite are for an --output that is a file; - is"),
        (
            ["in.txt", "--resume", "--overwrite"],
            "--resume and --overwrite exclude each other (see 'mpworker map --help')",
        ),
        ([], "Missing argument 'INPUT...'. (see 'mpworker map --help')"),
        (["in.txt", "-n", "0"], "Invalid value for '-n' / '--processes': 0 is not in the range x>=1. (see"),
        (["in.txt", "--timeout", "0"], "Invalid value for '--timeout': 0.0 is not in the range x>0. (see"),
    ],
)
def test_arguments_that_cannot_be_used(refused: Callable[..., str], arguments: Sequence[str], message: str) -> None:
    numbers(1)
    Path("bad").mkdir()
    Path("bad/__init__.py").write_text("1 / 0")
    assert refused("map", "tasks:echo", "-o", "out.jsonl", *arguments).startswith(message)
    assert not Path("out.jsonl").exists()


def test_an_output_that_cannot_be_written(refused: Callable[..., str]) -> None:
    os.mkfifo("fifo")
    numbers(1)
    to = lambda path: refused("map", "tasks:echo", "in.txt", "-o", path)  # noqa: E731
    assert to("no/out.jsonl") == "cannot write no/out.jsonl: No such file or directory"
    assert to(".") == "cannot write .: it is a directory"
    assert to("fifo") == "fifo is not a regular file: a run could not be resumed on it"


@pytest.mark.parametrize("name", ["out.jsonl", "out.failed.jsonl", "out.jsonl.state", "link"])
def test_an_input_is_never_written_to(refused: Callable[..., str], name: str) -> None:
    os.link(numbers(3, "out.jsonl" if name == "link" else name), "other")
    if name == "link":
        os.symlink("other", name)
    message = refused("map", "tasks:echo", name, "-o", "out.jsonl", "--overwrite")
    assert message == f"{name} is an input, and the run would write to it; choose another --output"


def test_an_existing_output_is_not_touched_unasked(refused: Callable[..., str]) -> None:
    numbers(1)
    Path("out.jsonl").write_text("precious\n")
    assert refused("map", "tasks:echo", "in.txt", "-o", "out.jsonl") == (
        "out.jsonl exists: --resume goes on with it, --overwrite throws it away"
    )
    assert refused("map", "tasks:echo", "in.txt", "-o", "out.jsonl", "--resume") == (
        "cannot resume: out.jsonl has no journal out.jsonl.state beside it; --overwrite throws it away"
    )
    Path("out.jsonl").unlink()
    Path("out.failed.jsonl").write_text("precious\n")
    assert refused("map", "tasks:echo", "in.txt", "-o", "out.jsonl").startswith("out.failed.jsonl exists: ")


def test_two_runs_cannot_have_one_output(refused: Callable[..., str]) -> None:
    numbers(1)
    with Path("out.jsonl").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        for option in ("--resume", "--overwrite", "--quiet"):
            message = refused("map", "tasks:echo", "in.txt", "-o", "out.jsonl", option)
            assert message == "another run is writing out.jsonl"


class TestResumingSomethingElse:
    """After a run that was broken off, ``--resume`` with what is not that run."""

    @pytest.fixture(autouse=True)
    def interrupted(self, folder: Path) -> None:
        numbers(100)
        header = {"target": "tasks:echo", "mode": "lines", "inputs": Lines(["in.txt"]).fingerprint}
        source = Lines(["in.txt"])
        with Output(OutputPaths.of("out.jsonl"), header) as out:
            for line in range(50):
                next(iter(source))
                out.result(json.dumps(str(line)), source.finished())
            out.sync()

    def resume(self, refused: Callable[..., str], *arguments: object, target: str = "tasks:echo") -> str:
        message = refused("map", target, *arguments, "-o", "out.jsonl", "--resume")
        start, end = "cannot resume out.jsonl: ", "; give what it was started with, or start anew with --overwrite"
        assert message.startswith(start)
        assert message.endswith(end)
        return message.removeprefix(start).removesuffix(end)

    def test_another_function(self, refused: Callable[..., str]) -> None:
        message = self.resume(refused, "in.txt", target="tasks:square")
        assert message == "it was made by tasks:echo, not by tasks:square"

    def test_another_mode(self, refused: Callable[..., str]) -> None:
        assert self.resume(refused, "in.txt", "--files") == "its items were lines, not files"

    def test_another_input(self, folder: Path, refused: Callable[..., str]) -> None:
        numbers(100, "other.txt")
        message = self.resume(refused, "other.txt")
        assert message == f"its input 1 was the file {folder}/in.txt, not the file {folder}/other.txt"
        assert self.resume(refused, "-") == f"its input 1 was the file {folder}/in.txt, not a stream"

    def test_more_inputs(self, refused: Callable[..., str]) -> None:
        assert self.resume(refused, "in.txt", "in.txt") == "it was made from 1 inputs, not from 2"

    def test_a_longer_input(self, folder: Path, refused: Callable[..., str]) -> None:
        before = Path("in.txt").stat()
        numbers(101)
        os.utime("in.txt", ns=(before.st_atime_ns, before.st_mtime_ns))
        assert (
            self.resume(refused, "in.txt") == f"its input {folder}/in.txt has changed since (size or modification time)"
        )

    def test_a_rewritten_input(self, folder: Path, refused: Callable[..., str]) -> None:
        os.utime("in.txt", ns=(0, Path("in.txt").stat().st_mtime_ns + 1))
        assert (
            self.resume(refused, "in.txt") == f"its input {folder}/in.txt has changed since (size or modification time)"
        )

    def test_an_output_cut_behind_its_journal(self, refused: Callable[..., str]) -> None:
        size = Path("out.jsonl").stat().st_size
        os.truncate("out.jsonl", size - 1)
        assert refused("map", "tasks:echo", "in.txt", "-o", "out.jsonl", "--resume") == (
            f"cannot resume: out.jsonl has {size - 1} bytes, but its journal knows of {size}: "
            "it was changed since; start anew with --overwrite"
        )

    def test_results_that_are_gone_stay_so(self, refused: Callable[..., str]) -> None:
        Path("out.jsonl").unlink()
        assert refused("map", "tasks:echo", "in.txt", "-o", "out.jsonl", "--resume") == (
            "cannot resume: out.jsonl is gone, though its journal is there; start anew with --overwrite"
        )
        assert not Path("out.jsonl").exists()

    @pytest.mark.parametrize("journal", ["", "{}\n{}\n", "no json", "\udcff", '{"version": 0}\n{}\n', "[]\n[]\n"])
    def test_a_journal_that_is_none(self, refused: Callable[..., str], journal: str) -> None:
        Path("out.jsonl.state").write_text(journal, errors="surrogateescape")
        assert refused("map", "tasks:echo", "in.txt", "-o", "out.jsonl", "--resume") == (
            "cannot resume: out.jsonl.state is not a journal that this version of mpworker reads"
        )


def test_a_stream_must_begin_as_it_did(folder: Path, refused: Callable[..., str]) -> None:
    header = {"target": "tasks:echo", "mode": "lines", "inputs": Lines(["-"]).fingerprint}
    numbers(100)
    source = Lines(["in.txt"])
    with Output(OutputPaths.of("out.jsonl"), header) as out:
        for line in range(50):
            next(iter(source))
            out.result(json.dumps(str(line)), source.finished())
            if line == 39:
                out.sync()
    arguments = ("map", "tasks:echo", "-", "-o", "out.jsonl", "--resume")
    same = Path("in.txt").read_bytes()
    with Path("out.jsonl").open("ab") as torn:
        torn.write(b'{"index": 50, "resu')
    saved = Path("out.jsonl").read_bytes()
    for stream, message in (
        (same.replace(b"7\n", b"8\n", 1), "the first 40 input items are not those of the run to resume: give the same"),
        (
            b"".join(same.splitlines(keepends=True)[:35]),
            "the input ends after 35 items, but the run to resume had done 40: ",
        ),
    ):
        done = run(*arguments, stdin=stream)
        assert done.returncode == ExitCode.USAGE
        assert done.stderr.startswith(f"mpworker: {message}")
        assert Path("out.jsonl").read_bytes() == saved
    # What follows the checkpoint was made of a stream that nothing tells from this one.
    other = same.replace(b"45\n", b"nine\n", 1)
    assert run(*arguments, stdin=other).returncode == 0
    assert results() == {n: str(n) for n in range(100)} | {45: "nine"}


def test_a_complete_run_is_of_the_same_stream(folder: Path) -> None:
    arguments = ("map", "tasks:echo", "-", "-o", "out.jsonl", "--resume")
    assert run(*arguments, stdin=b"1\n2\n3\n").returncode == 0
    saved = Path("out.jsonl").read_bytes()
    for stream, message in (
        (b"1\n2\n", "the input ends after 2 items, but the run to resume had done 3: "),
        (b"1\n2\n4\n", "the first 3 input items are not those of the run to resume: "),
        (b"1\n2\n3\n4\n", "the input goes on after the 3 items of the run to resume, which is complete: "),
    ):
        done = run(*arguments, stdin=stream)
        assert done.returncode == ExitCode.USAGE
        assert done.stderr.startswith(f"mpworker: {message}")
        assert done.stderr.endswith("give the same input again, or start anew with --overwrite\n")
        assert Path("out.jsonl").read_bytes() == saved
    assert run(*arguments, stdin=b"1\n2\n3\n").returncode == 0
    assert Path("out.jsonl").read_bytes() == saved


def test_overwrite_throws_away_all_of_the_earlier_run(folder: Path) -> None:
    Path("in.txt").write_text("1\n2\n3\n4\n")
    assert run("map", "tasks:odd", "in.txt", "-o", "out.jsonl", "-n", 2).returncode == 1
    assert run("map", "tasks:square", numbers(3), "-o", "out.jsonl", "-n", 2, "--overwrite").returncode == 0
    assert results() == {0: {"square": 0}, 1: {"square": 1}, 2: {"square": 4}}
    assert Path("out.failed.jsonl").read_bytes() == b""


def test_a_complete_run_has_nothing_to_resume(refused: Callable[..., str], folder: Path) -> None:
    assert run("map", "tasks:odd", numbers(9), "-o", "out.jsonl", "-n", 2, "--resume").returncode == 1
    message = refused("map", "tasks:odd", "in.txt", "-o", "out.jsonl", "--resume", code=ExitCode.SOME_FAILED)
    assert message == "nothing to do: out.jsonl is complete (9 items, 5 failed)"
