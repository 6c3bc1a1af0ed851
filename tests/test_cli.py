"""The command line: ``mpworker map`` as a user runs it, and the promises of its output."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import pty
import random
import re
import resource
import select
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import ClassVar, Self

import pytest

from mpworker import __version__, cli
from mpworker.cli import app, inputs, output
from mpworker.cli import map as map_module
from mpworker.cli.errors import CommandError, ExitCode
from mpworker.cli.inputs import START, Lines, Mark
from mpworker.cli.item import Failed
from mpworker.cli.journal import Checkpoint
from mpworker.cli.output import Output, OutputPaths
from mpworker.errors import ConfigurationError, StartFailed, SupervisorLost

TASKS = """
import os, signal, threading

def square(line):
    return {"square": int(line) ** 2}

def deadly(line):
    if int(line) % 500 == 499:
        os._exit(3)
    return int(line)

def echo(line):
    return line

def odd(line):
    if int(line) % 2 == 0:
        raise ValueError(f"{line} is even")
    return int(line)

def strange(line):
    if line == "none": return None
    if line == "set": return {1}
    if line == "nan": return float("nan")
    if line == "loop":
        loop = []
        loop.append(loop)
        return loop
    if line == "exit": raise SystemExit(3)
    if line == "separator": return "\\u2028\\ud800"
    if line == "quiet": raise KeyError
    if line == "long": raise ValueError("x" * 10_000)
    if line == "unprintable": raise Unprintable
    if line == "lost":
        from mpworker.errors import SupervisorLost
        raise SupervisorLost("of a pool of my own")
    if line == "leaving": raise Leaving
    if line == "locked": raise Locked("no such account")
    if line == "two": raise Two("a", "b")
    return line

class Leaving(Exception):
    def __str__(self):
        raise SystemExit(3)

class Locked(Exception):
    def __init__(self, message):
        super().__init__(message)
        self.lock = threading.Lock()

class Two(Exception):
    def __init__(self, a, b):
        super().__init__(f"{a} {b}")

class Unprintable(Exception):
    def __str__(self):
        raise RuntimeError

def die(line):
    if line == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    return line

def hang(line):
    while line == "hang":
        pass
    return line

class Times:
    @staticmethod
    def two(line):
        return 2 * int(line)

async def later(line):
    return line

def beat(line):
    result = odd(line) if line.isdecimal() else len(line)
    sum(range(20_000))
    with open("beats", "wb", buffering=0) as beats:
        beats.write(b".")
    return result

not_callable = 3
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current directory with the tasks of these tests in ``tasks.py``."""
    (tmp_path / "tasks.py").write_text(TASKS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in [name for name, module in sys.modules.items() if _is_under(module, tmp_path)]:
        del sys.modules[name]


def _is_under(module: object, directory: Path) -> bool:
    return str(getattr(module, "__file__", None)).startswith(str(directory))


def command(*arguments: object) -> list[str | bytes]:
    words = [word if isinstance(word, bytes) else str(word) for word in arguments]
    return [sys.executable, "-m", "mpworker.cli", *words]


def run(*arguments: object, stdin: bytes = b"") -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own, in the current directory."""
    done = subprocess.run(command(*arguments), input=stdin, capture_output=True, timeout=100, check=False)
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def numbers(count: int, name: str = "in.txt") -> str:
    """Write the lines 0, 1, ... to a file."""
    Path(name).write_text("".join(f"{n}\n" for n in range(count)))
    return name


def lines(name: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in Path(name).read_text().splitlines()]


def results(name: str = "out.jsonl") -> dict[object, object]:
    """Return the results by index, having checked that they are in order."""
    found = lines(name)
    assert [entry["index"] for entry in found] == sorted({entry["index"] for entry in found}, key=int)  # type: ignore[call-overload]
    return {entry["index"]: entry["result"] for entry in found}


# -- what a user gets ------------------------------------------------------------------------------------------------


def test_every_line_is_mapped_in_order(here: Path) -> None:
    done = run("map", "tasks:square", numbers(1000), "-o", "out.jsonl", "-n", 2)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert results() == {n: {"square": n * n} for n in range(1000)}
    assert Path("out.jsonl").read_text().splitlines()[3] == '{"index": 3, "result": {"square": 9}}'
    assert Path("out.failed.jsonl").read_text() == ""


def test_several_inputs_are_one_sequence_and_a_failure_names_its_place(here: Path) -> None:
    Path("a").write_text("2\n1\n")
    Path("empty").write_text("")
    Path("b").write_text("3\n5\n6")  # the last line lacks its line break
    done = run("map", "tasks:odd", "empty", "a", "empty", "b", "empty", "-o", "out.jsonl", "-n", 2)
    assert done.returncode == ExitCode.SOME_FAILED
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("mpworker: 5 items in ")
    assert done.stderr.endswith(" s: 2 failed, see out.failed.jsonl\n")
    assert results() == {1: 1, 2: 3, 3: 5}
    assert lines("out.failed.jsonl") == [
        {"index": 0, "input": "a", "line": 1, "error": "ValueError", "message": "2 is even"},
        {"index": 4, "input": "b", "line": 3, "error": "ValueError", "message": "6 is even"},
    ]


def test_standard_input_is_an_input_among_others(here: Path) -> None:
    done = run("map", "tasks:odd", numbers(2), "-", "-o", "out.jsonl", "-n", 2, "--quiet", stdin=b"7\n8\n")
    assert (done.returncode, done.stderr) == (1, "")
    assert results() == {1: 1, 2: 7}
    assert [(entry["input"], entry["line"]) for entry in lines("out.failed.jsonl")] == [("in.txt", 1), ("-", 2)]


def test_a_line_is_its_text_without_the_line_break(here: Path) -> None:
    Path("in.txt").write_bytes("plain\n\nwindows\r\n\r\r\n tab\t \näöü\u2028x\n\xe9".encode() + b"\xff\n" + b"end\r")
    assert run("map", "tasks:echo", "in.txt", "-o", "out.jsonl", "-n", 2).returncode == 1
    assert results() == dict(enumerate(["plain", "", "windows", "\r", " tab\t ", "äöü\u2028x"])) | {7: "end\r"}
    [failed] = lines("out.failed.jsonl")
    assert failed["error"] == "UnicodeDecodeError"
    assert str(failed["message"]).startswith("the line is not UTF-8: ")


def test_a_line_beyond_the_bound_fails_alone(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "LINE_BYTES_MAX", 10)
    Path("in.txt").write_bytes(b"123456789\n" + b"x" * 35 + b"\nshort\n" + b"y" * 10)
    source = Lines(["in.txt"])
    assert list(source) == [b"123456789\n", None, b"short\n", None]
    assert [source.finished().position for _ in range(4)] == [10, 46, 52, 62]


def test_files_are_items_of_their_own(here: Path) -> None:
    Path("directory").mkdir()
    done = run("map", "tasks:echo", "--files", "tasks.py", "directory", "tasks.py", "-o", "out.jsonl", "-n", 2)
    assert done.returncode == 0
    assert results() == {0: "tasks.py", 1: "directory", 2: "tasks.py"}
    Path(os.fsdecode(b"\xff.txt")).touch()
    assert run("map", "tasks:echo", "--files", b"\xff.txt", "-o", "bytes.jsonl", "-n", 1).returncode == 0
    assert results("bytes.jsonl") == {0: "\udcff.txt"}
    run("map", "os:listdir", "--files", "tasks.py", "directory", "-o", "sizes.jsonl", "-n", 2)
    assert results("sizes.jsonl") == {1: []}
    [failed] = lines("sizes.failed.jsonl")
    assert failed.keys() == {"index", "input", "error", "message"}
    assert (failed["input"], failed["error"]) == ("tasks.py", "NotADirectoryError")


def test_a_crash_costs_the_items_that_crash_and_no_other(here: Path) -> None:
    done = run("map", "tasks:deadly", numbers(3000), "-o", "out.jsonl", "-n", 2)
    assert done.returncode == ExitCode.SOME_FAILED
    assert [entry["index"] for entry in lines("out.failed.jsonl")] == list(range(499, 3000, 500))


def test_standard_input_that_is_closed(here: Path) -> None:
    shell = f"{shlex.join(str(word) for word in command('map', 'tasks:echo', '-', '-o', 'out.jsonl'))} <&-"
    done = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stderr) == (ExitCode.USAGE, "mpworker: standard input (-) is closed\n")
    assert not Path("out.jsonl").exists()


def test_what_json_cannot_express_fails_and_the_run_goes_on(here: Path) -> None:
    Path("in.txt").write_text(
        "none\nset\nnan\nloop\nseparator\nquiet\nlong\nunprintable\nexit\nlost\nlast\nlocked\nleaving\ntwo\n"
    )
    assert run("map", "tasks:strange", "in.txt", "-o", "out.jsonl", "-n", 2).returncode == 1
    assert results() == {0: None, 4: "\u2028\ud800", 10: "last"}
    assert Path("out.jsonl").read_bytes().isascii()
    failed = {entry["index"]: (entry["error"], str(entry["message"])) for entry in lines("out.failed.jsonl")}
    for index, kind in ((1, "set"), (2, "float"), (3, "list")):
        assert failed[index][0] == "SerializationError"
        assert failed[index][1].startswith(f"JSON cannot express the result, a {kind}: ")
    assert failed[5] == ("KeyError", "")
    assert failed[6] == ("ValueError", "x" * map_module.MESSAGE_LENGTH_MAX + "... (10,000 characters)")
    assert failed[7] == ("tasks.Unprintable", "<its __str__ raised RuntimeError>")
    assert failed[8][0] == "TaskExited"
    assert failed[9] == ("SupervisorLost", "of a pool of my own")
    assert failed[11] == ("tasks.Locked", "no such account")  # what it is, also where it cannot be sent
    assert failed[12] == ("tasks.Leaving", "<its __str__ raised SystemExit>")
    assert failed[13] == ("tasks.Two", "a b")


def test_a_dead_process_costs_its_item_only(here: Path) -> None:
    Path("in.txt").write_text("a\nb\ndie\nc\nd\n")
    assert run("map", "tasks:die", "in.txt", "-o", "out.jsonl", "-n", 2).returncode == 1
    assert results() == {0: "a", 1: "b", 3: "c", 4: "d"}
    [failed] = lines("out.failed.jsonl")
    assert (failed["line"], failed["error"]) == (3, "WorkerCrashed")


def test_a_timeout_costs_its_item_only(here: Path) -> None:
    Path("in.txt").write_text("a\nhang\nb\n")
    assert run("map", "tasks:hang", "in.txt", "-o", "out.jsonl", "-n", 2, "--timeout", 0.3).returncode == 1
    assert results() == {0: "a", 2: "b"}
    [failed] = lines("out.failed.jsonl")
    assert (failed["line"], failed["error"]) == (2, "TaskTimeout")


@pytest.mark.parametrize("options", [["--chunksize", "1"], ["--chunksize", "7"], ["--preload", "tasks"]])
def test_options_do_not_change_results(here: Path, options: list[str]) -> None:
    assert run("map", "tasks:Times.two", numbers(50), "-o", "out.jsonl", "-n", 2, *options).returncode == 0
    assert results() == {n: 2 * n for n in range(50)}


def test_no_items_are_no_results(here: Path) -> None:
    assert run("map", "tasks:echo", "-", "-o", "out.jsonl", "-n", 1).returncode == 0
    assert Path("out.jsonl").read_bytes() == b""
    assert lines("out.jsonl.state")[1]["complete"] is True


def test_progress_and_a_summary_are_shown_on_a_terminal(here: Path) -> None:
    shown = _on_terminal("map", "tasks:square", numbers(100), "-o", "out.jsonl", "-n", 2)
    assert " items, 0 failed, " in shown
    assert "mpworker: 100 items in " in shown
    assert _on_terminal("map", "tasks:square", "in.txt", "-o", "quiet.jsonl", "-n", 2, "-q") == ""


def _on_terminal(*arguments: object, stdout_too: bool = False) -> str:
    ours, theirs = pty.openpty()
    try:
        # Not the caller's TERM, which may be one that cannot move its cursor, and then has no bar.
        environment = {**os.environ, "TERM": "xterm"}
        with subprocess.Popen(
            command(*arguments),
            stdin=subprocess.DEVNULL,
            stdout=theirs if stdout_too else None,
            stderr=theirs,
            env=environment,
        ) as process:
            os.close(theirs)
            shown = b""
            while True:
                try:
                    shown += os.read(ours, 4096)
                except OSError:  # Linux's word for the end of a terminal
                    break
            assert process.wait() == 0
    finally:
        os.close(ours)
    return shown.decode()


def test_the_entry_point_exits_with_the_code_of_the_command(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for argv, code in ((["--help"], ExitCode.OK), ([], ExitCode.USAGE), (["no-such"], ExitCode.USAGE)):
        with pytest.raises(SystemExit) as caught:
            cli.main(argv)
        assert caught.value.code == code
    assert capsys.readouterr().err == (
        "mpworker: Missing command. (see 'mpworker --help')\n"
        "mpworker: No such command 'no-such'. (see 'mpworker --help')\n"
    )


def test_exit_codes_are_those_of_the_documentation() -> None:
    page = (Path(__file__).parents[1] / "docs" / "cli.md").read_text()
    assert list(map(int, ExitCode)) == [int(code) for code in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)]


def test_version_and_help(here: Path) -> None:
    assert run("--version").stdout == f"mpworker {__version__}\n"
    assert "--resume" in run("map", "--help").stdout


def test_what_a_child_imports_loads_neither_click_nor_rich() -> None:
    code = (
        "import sys, mpworker.cli.item, mpworker.cli.target; sys.exit('click' in sys.modules or 'rich' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=100).returncode == 0


def test_the_session_in_the_documentation(here: Path) -> None:
    page = (Path(__file__).parents[1] / "docs" / "cli.md").read_text()
    source, session = re.findall(r"```(?:python|console)\n(.*?)```", page, re.DOTALL)[:2]
    Path("primes.py").write_text(source)
    commands = re.findall(r"^\$ (.*)\n", session, re.MULTILINE)
    script = f'mpworker() {{ "{sys.executable}" -m mpworker.cli "$@"; }}; exec 2>&1\n' + "\n".join(commands)
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, timeout=100)
    expected = re.sub(r"^\$ .*\n", "", session, flags=re.MULTILINE)
    seconds = re.compile(r"in [\d.]+ s")
    assert seconds.sub("in", done.stdout) == seconds.sub("in", expected)


# -- standard output ---------------------------------------------------------------------------------------------------


def test_results_go_to_standard_output_and_all_else_to_standard_error(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    chatty = "import os\nprint('imported')\ndef f(line):\n    print('child', flush=True)\n    os.write(1, b'raw\\n')\n"
    Path("chatty.py").write_text(chatty + "    return int(line)\n")
    done = run("map", "chatty:f", "-", "-o", "-", "-n", 1, stdin=b"1\nx\n3\n")
    assert done.returncode == ExitCode.SOME_FAILED
    assert done.stdout == '{"index": 0, "result": 1}\n{"index": 2, "result": 3}\n'
    said = done.stderr.splitlines()
    assert said.count("child") == said.count("raw") == 3
    assert "imported" in said
    [failed] = [json.loads(line) for line in said if line.startswith("{")]
    assert failed == {
        "index": 1,
        "input": "-",
        "line": 2,
        "error": "ValueError",
        "message": "invalid literal for int() with base 10: 'x'",
    }
    [summary] = [line for line in said if line.startswith("mpworker:")]
    assert summary.startswith("mpworker: 3 items in ")
    assert summary.endswith(" s: 1 failed, see above")
    assert not Path("-").exists()


def test_a_reader_of_standard_output_that_leaves_is_no_news(here: Path) -> None:
    with subprocess.Popen(
        command("map", "tasks:echo", numbers(100_000), "-o", "-", "-n", 1),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout
        assert process.stderr
        assert process.stdout.readline() == b'{"index": 0, "result": "0"}\n'
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == ExitCode.UNREAD


@pytest.mark.parametrize(
    ("redirection", "code", "said"),
    [
        (">&-", ExitCode.USAGE, "mpworker: standard output (-) is closed\n"),
        (
            ">/dev/full",
            ExitCode.BROKEN_OFF,
            "mpworker: cannot write standard output: No space left on device; broken off after 0 items\n",
        ),
        ("2>&- >/dev/null", ExitCode.OK, ""),
    ],
)
def test_standard_output_that_takes_nothing(here: Path, redirection: str, code: int, said: str) -> None:
    words = command("map", "tasks:echo", numbers(3), "-o", "-", "-n", 1)
    shell = f"{shlex.join(str(word) for word in words)} {redirection}"
    done = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stderr) == (code, said)


def test_a_terminal_that_shows_results_shows_no_progress(here: Path) -> None:
    shown = _on_terminal("map", "tasks:echo", numbers(2), "-o", "-", "-n", 1, stdout_too=True)
    assert "\x1b" not in shown
    assert shown.splitlines()[:2] == ['{"index": 0, "result": "0"}', '{"index": 1, "result": "1"}']
    assert shown.splitlines()[2].startswith("mpworker: 2 items in ")


# -- a pool that does not start ----------------------------------------------------------------------------------------


def test_a_preload_that_raises_is_a_line_and_a_code_of_its_own(here: Path) -> None:
    Path("bad.py").write_text("raise ValueError('not\\nyet')\n")
    done = run("map", "tasks:echo", numbers(3), "-o", "out.jsonl", "--preload", "bad")
    assert (done.returncode, done.stdout) == (ExitCode.NOT_STARTED, "")
    assert done.stderr == (
        "mpworker: item 0 of map(tasks:echo): the children cannot start: preload of 'bad' raised ValueError: not yet\n"
    )
    assert Path("out.failed.jsonl").read_bytes() == b""
    Path("bad.py").write_text("")
    assert run("map", "tasks:echo", "in.txt", "-o", "out.jsonl", "--preload", "bad", "--resume").returncode == 0


def test_a_machine_that_refuses_a_process_is_a_line_too(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(map_module, "ProcessWorker", refuse)
    assert app.run(["map", "tasks:echo", numbers(3), "-o", "out.jsonl"]) == ExitCode.NOT_STARTED
    assert capsys.readouterr().err == "mpworker: no process can be started: Cannot allocate memory\n"


def test_what_is_said_of_an_item_names_the_function_of_the_user(here: Path) -> None:
    Path("in.txt").write_text("die\nhang\n")
    options = ["-n", 1, "--chunksize", 1]
    assert run("map", "tasks:die", "in.txt", "-o", "dead.jsonl", *options).returncode == 1
    assert run("map", "tasks:hang", "in.txt", "-o", "late.jsonl", *options, "--timeout", 0.5).returncode == 1
    for name in ("dead", "late"):
        [failed] = lines(f"{name}.failed.jsonl")
        assert re.match(r"item \d of map\(tasks:(die|hang)\)", str(failed["message"]))


# -- what is refused, before anything is started -----------------------------------------------------------------------


@pytest.fixture
def refused(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command line that has to be refused; return its one line."""

    def start(*_: object, **__: object) -> None:
        pytest.fail("a pool was started")

    monkeypatch.setattr(map_module, "ProcessWorker", start)

    def refuse(*arguments: object, code: int = ExitCode.USAGE) -> str:
        files = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
        assert app.run([str(argument) for argument in arguments]) == code
        assert {path: path.read_bytes() for path in here.rglob("*") if path.is_file() if path in files} == files
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
        ("broken:f", "cannot import 'broken': ZeroDivisionError: division by zero (at {here}/broken.py:2)"),
        ("syntax:f", "cannot import 'syntax': SyntaxError: "),
        ("needy:f", "cannot import 'needy': ModuleNotFoundError: No module named 'no_such' (at {here}/needy.py:1)"),
        ("script:f", "cannot import 'script': SystemExit: 3 (at {here}/script.py:1)"),
    ],
)
def test_a_target_that_cannot_be_used(here: Path, refused: Callable[..., str], target: str, message: str) -> None:
    Path("broken.py").write_text("x = 0\ny = 1 / x\n")
    Path("syntax.py").write_text("def f(:\n")
    Path("needy.py").write_text("import no_such\n")
    Path("script.py").write_text("raise SystemExit(3)\n")
    numbers(1)
    assert refused("map", target, "in.txt", "-o", "out.jsonl").startswith(message.format(here=here))
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
    def interrupted(self, here: Path) -> None:
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

    def test_another_input(self, here: Path, refused: Callable[..., str]) -> None:
        numbers(100, "other.txt")
        message = self.resume(refused, "other.txt")
        assert message == f"its input 1 was the file {here}/in.txt, not the file {here}/other.txt"
        assert self.resume(refused, "-") == f"its input 1 was the file {here}/in.txt, not a stream"

    def test_more_inputs(self, refused: Callable[..., str]) -> None:
        assert self.resume(refused, "in.txt", "in.txt") == "it was made from 1 inputs, not from 2"

    def test_a_longer_input(self, here: Path, refused: Callable[..., str]) -> None:
        before = Path("in.txt").stat()
        numbers(101)
        os.utime("in.txt", ns=(before.st_atime_ns, before.st_mtime_ns))
        assert (
            self.resume(refused, "in.txt") == f"its input {here}/in.txt has changed since (size or modification time)"
        )

    def test_a_rewritten_input(self, here: Path, refused: Callable[..., str]) -> None:
        os.utime("in.txt", ns=(0, Path("in.txt").stat().st_mtime_ns + 1))
        assert (
            self.resume(refused, "in.txt") == f"its input {here}/in.txt has changed since (size or modification time)"
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


def test_a_stream_must_begin_as_it_did(here: Path, refused: Callable[..., str]) -> None:
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


def test_a_complete_run_is_of_the_same_stream(here: Path) -> None:
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


def test_overwrite_throws_away_all_of_the_earlier_run(here: Path) -> None:
    Path("in.txt").write_text("1\n2\n3\n4\n")
    assert run("map", "tasks:odd", "in.txt", "-o", "out.jsonl", "-n", 2).returncode == 1
    assert run("map", "tasks:square", numbers(3), "-o", "out.jsonl", "-n", 2, "--overwrite").returncode == 0
    assert results() == {0: {"square": 0}, 1: {"square": 1}, 2: {"square": 4}}
    assert Path("out.failed.jsonl").read_bytes() == b""


def test_a_complete_run_has_nothing_to_resume(refused: Callable[..., str], here: Path) -> None:
    assert run("map", "tasks:odd", numbers(9), "-o", "out.jsonl", "-n", 2, "--resume").returncode == 1
    message = refused("map", "tasks:odd", "in.txt", "-o", "out.jsonl", "--resume", code=ExitCode.SOME_FAILED)
    assert message == "nothing to do: out.jsonl is complete (9 items, 5 failed)"


# -- durability --------------------------------------------------------------------------------------------------------

HEADER = {"target": "tasks:odd", "mode": "lines", "inputs": [["file", "/in.txt", 7, 7]]}
ITEMS = 12
ENDED = Mark(7, 7)


def write(out: Output, until: int = ITEMS) -> None:
    """Write the items that are missing; every third one fails."""
    while out.items < until:
        mark = Mark(out.items + 1, 1000 + out.items)
        if out.items % 3 == 1:
            out.failure(Failed("ValueError", "no\nluck"), {"input": "-", "line": out.items + 1}, mark)
        else:
            out.result(json.dumps("x" * out.items), mark)


@pytest.mark.parametrize("checkpoint", [0, 1, 2, 7, ITEMS])
def test_whatever_is_left_of_the_tail_a_resumed_run_completes_it(tmp_path: Path, checkpoint: int) -> None:
    whole, torn = OutputPaths.of(tmp_path / "whole.jsonl"), OutputPaths.of(tmp_path / "torn.jsonl")
    with Output(whole, HEADER) as out:
        write(out, checkpoint)
        out.sync()
        durable = (whole.results.stat().st_size, whole.failures.stat().st_size)
        write(out)
    all_results, all_failures = whole.results.read_bytes(), whole.failures.read_bytes()
    tails = ["", "\0\0\0", '{"index": 5, "resu', "[]\n", '{"index": true}\n', '{"index": 99, "result": 0}\n']
    cuts = [(len(all_results), at) for at in range(durable[1], len(all_failures) + 1)]
    cuts += [(at, len(all_failures)) for at in range(durable[0], len(all_results) + 1)]
    cuts += [
        (random.randint(durable[0], len(all_results)), random.randint(durable[1], len(all_failures)))
        for _ in range(200)
    ]
    for results_cut, failures_cut in cuts:
        torn.results.write_bytes(all_results[:results_cut] + random.choice(tails).encode())
        torn.failures.write_bytes(all_failures[:failures_cut] + random.choice(tails).encode())
        torn.journal.write_bytes(whole.journal.read_bytes())
        with Output(torn, HEADER, resume=True) as out:
            out.go_on(Mark(out.items, 0))
            kept = torn.results.read_bytes().count(b"\n"), torn.failures.read_bytes().count(b"\n")
            assert out.items == sum(kept) >= checkpoint
            assert out.failed == kept[1] == len([n for n in range(out.items) if n % 3 == 1])
            whole_results, whole_failures = (
                all_results[:results_cut].count(b"\n"),
                all_failures[:failures_cut].count(b"\n"),
            )
            assert out.items == max(
                items
                for items in range(ITEMS + 1)
                if (failed := len(range(1, items, 3))) <= whole_failures and items - failed <= whole_results
            )
            write(out)
        assert torn.results.read_bytes() == all_results
        assert torn.failures.read_bytes() == all_failures


def test_results_that_nest_deeper_than_python_recurses_are_found_again(tmp_path: Path) -> None:
    paths = OutputPaths.of(tmp_path / "out.jsonl")
    with Output(paths, HEADER) as out:
        out.result("[" * 100_000 + "]" * 100_000, Mark(1, 1))
    with Output(paths, HEADER, resume=True) as out:
        out.go_on(Mark(out.items, 0))
        assert out.items == 1


def test_the_journal_never_speaks_of_more_than_was_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each journal, as it is about to replace the last, is compared with what fsync was asked to keep."""
    paths = OutputPaths.of(tmp_path / "out.jsonl")
    synced: dict[int, int] = {}
    journals: list[Checkpoint] = []
    real_fsync, real_write = os.fsync, output.write_journal

    def fsync(descriptor: int) -> None:
        real_fsync(descriptor)
        status = os.fstat(descriptor)
        synced[status.st_ino] = status.st_size

    def write_journal(path: Path, header: dict[str, object], checkpoint: Checkpoint) -> None:
        assert synced[paths.results.stat().st_ino] == checkpoint.results_bytes
        assert synced[paths.failures.stat().st_ino] == checkpoint.failures_bytes
        journals.append(checkpoint)
        real_write(path, header, checkpoint)
        assert path.stat().st_ino in synced
        assert path.parent.stat().st_ino in synced

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(output, "write_journal", write_journal)
    monkeypatch.setattr(output, "SYNC_INTERVAL_MIN", 0.0)
    monkeypatch.setattr(output, "SYNC_SHARE_MAX", 1.0)
    with Output(paths, HEADER) as out:
        write(out)
        out.finish()
    assert [checkpoint.items for checkpoint in journals] == [*range(ITEMS + 1), ITEMS]
    assert [checkpoint.complete for checkpoint in journals] == [False] * (ITEMS + 1) + [True]


def test_a_result_is_with_the_kernel_as_soon_as_it_is_written(tmp_path: Path) -> None:
    paths = OutputPaths.of(tmp_path / "out.jsonl")
    with Output(paths, HEADER) as out:
        for items in range(1, ITEMS):
            write(out, items)
            assert (paths.results.read_bytes() + paths.failures.read_bytes()).count(b"\n") == items


def test_checkpoints_are_rare_where_the_disk_is_slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(output.time, "monotonic", lambda: now)
    syncs = []

    def fsync(descriptor: int) -> None:
        nonlocal now
        now += 0.2
        syncs.append(descriptor)

    with Output(OutputPaths.of(tmp_path / "out.jsonl"), HEADER) as out:
        monkeypatch.setattr(os, "fsync", fsync)
        began = now
        for items in range(1, 1001):
            now += 0.1
            write(out, items)
    share = len(syncs) * 0.2 / (now - began)
    assert 0.05 < share < 0.11


def test_a_full_disk_breaks_the_run_off_and_it_can_be_resumed(tmp_path: Path) -> None:
    paths = OutputPaths.of(tmp_path / "out.jsonl")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Output(paths, HEADER) as out:
        write(out, 5)
        # The next line fits in part only; SIGXFSZ is ignored by Python.
        resource.setrlimit(resource.RLIMIT_FSIZE, (paths.results.stat().st_size + 20, limits[1]))
        try:
            with pytest.raises(CommandError, match=r"^cannot write .*/out\.jsonl: File too large$") as caught:
                write(out)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert out.items == 5
    assert caught.value.exit_code == ExitCode.BROKEN_OFF
    assert not paths.results.read_bytes().endswith(b"\n")
    with Output(paths, HEADER, resume=True) as out:
        out.go_on(Mark(out.items, 0))
        assert out.items == 5
        write(out)
    assert len(lines(str(paths.results))) + len(lines(str(paths.failures))) == ITEMS


def test_skipping_finds_the_place_and_its_mark(here: Path) -> None:
    numbers(20)
    first, second = Lines(["in.txt"]), Lines(["in.txt"])
    marks = [START, *(first.finished() for _ in first)]
    assert second.skip(15, 10, marks[10]) == marks[15]
    assert next(iter(second)) == b"15\n"
    assert Lines(["in.txt"]).skip(0, 0, START) == START
    with pytest.raises(CommandError, match="not those"):
        Lines(["in.txt"]).skip(15, 10, marks[10]._replace(crc=0))
    assert second.locate(15) == {"input": "in.txt", "line": 16}


class InProcess:
    """A pool that runs everything in the caller, and keeps what it was made and called with."""

    made: ClassVar[dict[str, object]] = {}

    def __init__(self, n: int | None, **options: object) -> None:
        self.made |= {"n": n, **options}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def processes(self) -> dict[str, object]:
        return {"supervisor": 1}

    def map(self, fn: Callable[[bytes], str], items: Iterable[bytes], **options: object) -> Iterator[object]:
        self.made |= options
        yield from map(fn, items)


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ([], {}),
        (["-n", "7"], {"n": 7}),
        (["--processes", "7"], {"n": 7}),
        (["--timeout", "1.5"], {"timeout": 1.5}),
        (["--retries", "2"], {"retries": 2, "crash_retries": 2}),
        (["--chunksize", "9"], {"chunksize": 9}),
        (["--preload", "json", "--preload", "xml.dom"], {"preload": ("json", "xml.dom")}),
    ],
)
def test_options_reach_the_pool(
    here: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], options: dict[str, object]
) -> None:
    monkeypatch.setattr(InProcess, "made", {})
    monkeypatch.setattr(map_module, "ProcessWorker", InProcess)
    assert app.run(["map", "tasks:echo", numbers(3), "-o", "out.jsonl", *arguments]) == ExitCode.OK
    pool = {"n": None, "timeout": None, "retries": 0, "crash_retries": 1, "preload": ()}
    assert InProcess.made == pool | {"chunksize": None, "return_exceptions": True} | options


@pytest.mark.parametrize("kind", [SupervisorLost, StartFailed])
def test_a_pool_that_is_lost_fails_no_items(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: type[Exception]
) -> None:
    class Lost(InProcess):
        def processes(self) -> dict[str, object]:
            return {}

        def map(self, fn: Callable[[bytes], str], items: Iterable[bytes], **_: object) -> Iterator[object]:
            for number, item in enumerate(items):
                yield fn(item) if number < 3 else kind("the supervisor\nis gone")

    monkeypatch.setattr(map_module, "ProcessWorker", Lost)
    assert app.run(["map", "tasks:echo", numbers(9), "-o", "out.jsonl"]) == ExitCode.BROKEN_OFF
    assert capsys.readouterr().err == (
        "mpworker: the supervisor is gone; "
        "broken off after 3 items; the same command with --resume goes on from there\n"
    )
    assert results() == {0: "0", 1: "1", 2: "2"}
    assert Path("out.failed.jsonl").read_bytes() == b""


def test_a_message_says_the_place_in_the_input_after_a_resume_too(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Lost(InProcess):
        def processes(self) -> dict[str, object]:
            return {}

        def map(self, fn: Callable[[bytes], str], items: Iterable[bytes], **_: object) -> Iterator[object]:
            for number, item in enumerate(items):
                yield fn(item) if number < 3 else SupervisorLost("the supervisor is gone")

    Path("in.txt").write_text("a\nb\nc\nd\nhang\n")
    arguments = ["map", "tasks:hang", "in.txt", "-o", "out.jsonl"]
    with monkeypatch.context() as patch:
        patch.setattr(map_module, "ProcessWorker", Lost)
        assert app.run(arguments) == ExitCode.BROKEN_OFF
    assert run(*arguments, "--resume", "--timeout", 0.5).returncode == ExitCode.SOME_FAILED
    [failed] = lines("out.failed.jsonl")
    assert failed["index"] == 4
    assert str(failed["message"]).startswith("item 4 of map(tasks:hang) ran for over 0.5 s")


def test_options_that_the_pool_refuses_are_an_error_of_usage(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ConfigurationError("n=100000 is more than 4096")

    monkeypatch.setattr(map_module, "ProcessWorker", refuse)
    assert app.run(["map", "tasks:echo", numbers(3), "-o", "out.jsonl"]) == ExitCode.USAGE
    assert capsys.readouterr().err == "mpworker: n=100000 is more than 4096\n"
    monkeypatch.setattr(map_module, "ProcessWorker", InProcess)
    assert app.run(["map", "tasks:echo", "in.txt", "-o", "out.jsonl"]) == ExitCode.OK  # nothing is in the way


@pytest.mark.parametrize(
    ("option", "value"),
    [("-n", "999"), ("--chunksize", "99999999"), ("--timeout", "nan"), ("--timeout", "1e12"), ("--retries", "9999999")],
)
def test_an_option_out_of_its_bounds_is_refused_before_any_file_is_made(
    here: Path, capsys: pytest.CaptureFixture[str], option: str, value: str
) -> None:
    numbers(3)
    assert app.run(["map", "tasks:echo", "in.txt", "-o", "out.jsonl", option, value]) == ExitCode.USAGE
    assert option.removeprefix("-n") in capsys.readouterr().err
    assert not list(here.glob("out*"))


def test_an_input_that_breaks_half_way_breaks_the_run_off(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers(5)
    numbers(5, "gone.txt")
    real_open = inputs._open

    def open_(name: str) -> object:
        Path("gone.txt").unlink(missing_ok=True)
        return real_open(name)

    monkeypatch.setattr(inputs, "_open", open_)
    assert app.run(["map", "tasks:echo", "in.txt", "gone.txt", "-o", "out.jsonl", "-n", "1"]) == ExitCode.BROKEN_OFF
    assert capsys.readouterr().err == (
        "mpworker: cannot read gone.txt: No such file or directory; "
        "broken off after 5 items; the same command with --resume goes on from there\n"
    )
    assert len(results()) == 5
    assert lines("out.jsonl.state")[1]["complete"] is False


# -- killed for real ---------------------------------------------------------------------------------------------------


class Beats:
    """A FIFO in which ``tasks:beat`` leaves a byte for each item it computed."""

    def __init__(self) -> None:
        os.mkfifo("beats")
        self._descriptor = os.open("beats", os.O_RDWR)  # for writing too: no end of file between two writers

    def wait(self, count: int, process: subprocess.Popen[bytes]) -> None:
        """Wait until so many items were computed, or the process has ended."""
        pidfd = os.pidfd_open(process.pid)
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        poll.register(pidfd, select.POLLIN)
        try:
            while count > 0:
                ready = [descriptor for descriptor, _ in poll.poll(100_000)]
                assert ready, "nothing was computed"
                if self._descriptor in ready:
                    count -= len(os.read(self._descriptor, count))
                elif pidfd in ready:
                    return
        finally:
            os.close(pidfd)

    def drain(self) -> None:
        os.set_blocking(self._descriptor, False)
        try:
            while os.read(self._descriptor, 65536):
                pass
        except BlockingIOError:
            os.set_blocking(self._descriptor, True)

    def close(self) -> None:
        os.close(self._descriptor)


@pytest.fixture
def beats(here: Path) -> Iterator[Beats]:
    beats = Beats()
    yield beats
    beats.close()


def test_killed_again_and_again_a_run_loses_nothing_and_writes_nothing_twice(beats: Beats) -> None:
    numbers(1500)
    with subprocess.Popen(command("map", "tasks:beat", "in.txt", "-o", "whole.jsonl", "-n", 2, "-q")) as whole:
        beats.wait(1500, whole)
        assert whole.wait() == ExitCode.SOME_FAILED
    kills = partial = 0
    for _ in range(60):
        arguments = ["map", "tasks:beat", "in.txt", "-o", "out.jsonl", "-n", 2, "-q", "--resume"]
        with subprocess.Popen(command(*arguments, "--chunksize", random.choice([1, 2, 5]))) as process:
            if kills < 12:
                beats.wait(random.randint(1, 150), process)
                process.kill()
            else:
                beats.wait(1500, process)
        beats.drain()
        state = lines("out.jsonl.state")[1] if Path("out.jsonl.state").exists() else {}
        if process.returncode == -signal.SIGKILL:
            kills += 1
            partial += 0 < Path("out.jsonl").stat().st_size < Path("whole.jsonl").stat().st_size
        elif kills >= 12:
            break
        if state.get("complete"):  # faster than we could kill it: it begins again
            for name in ("out.jsonl", "out.failed.jsonl", "out.jsonl.state"):
                Path(name).unlink()
    assert process.returncode == ExitCode.SOME_FAILED
    assert (kills, partial > 3) == (12, True)
    assert Path("out.jsonl").read_bytes() == Path("whole.jsonl").read_bytes()
    assert Path("out.failed.jsonl").read_bytes() == Path("whole.failed.jsonl").read_bytes()
    assert sorted([*results(), *(entry["index"] for entry in lines("out.failed.jsonl"))]) == list(range(1500))


def test_ctrl_c_leaves_an_output_to_go_on_with(beats: Beats) -> None:
    numbers(3000)
    arguments = ["map", "tasks:beat", "in.txt", "-o", "out.jsonl", "-n", 2, "--chunksize", 3]
    with subprocess.Popen(command(*arguments), stderr=subprocess.PIPE) as process:
        beats.wait(100, process)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=100)
    assert process.returncode == ExitCode.INTERRUPTED
    assert said.count(b"\n") == 1
    assert said.startswith(b"mpworker: interrupted after ")
    assert said.endswith(b" items; the same command with --resume goes on from there\n")
    before = Path("out.jsonl").read_bytes()
    indexes = [*results(), *(entry["index"] for entry in lines("out.failed.jsonl"))]
    assert sorted(indexes, key=int) == list(range(len(indexes)))  # type: ignore[call-overload]
    beats.drain()
    with subprocess.Popen(command(*arguments, "--resume", "-q")) as process:
        beats.wait(3000 - len(indexes), process)
    assert process.returncode == ExitCode.SOME_FAILED
    assert Path("out.jsonl").read_bytes().startswith(before)
    assert list(results()) == list(range(1, 3000, 2))


def test_an_endless_input_takes_bounded_memory(beats: Beats) -> None:
    endless = "import sys\nwhile True: sys.stdout.buffer.write(b'x' * 65_535 + b'\\n')"
    arguments = ["map", "tasks:beat", "-", "-o", "out.jsonl", "-n", 2]
    with (
        subprocess.Popen([sys.executable, "-c", endless], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as source,
        subprocess.Popen(command(*arguments), stdin=source.stdout, stderr=subprocess.PIPE) as process,
    ):
        assert source.stdout
        source.stdout.close()
        beats.wait(5_000, process)  # 330 MB
        status = dict(line.split(":", 1) for line in Path(f"/proc/{process.pid}/status").read_text().splitlines())
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=100)
        source.kill()
    assert process.returncode == ExitCode.INTERRUPTED, said
    assert int(status["VmHWM"].split()[0]) < 200_000
