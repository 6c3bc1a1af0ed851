"""The command line: ``mpworker map`` as a user runs it."""

from __future__ import annotations

import errno
import json
import os
import pty
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from commands import command, lines, numbers, results, run

from mpworker import __version__, cli
from mpworker.cli import app, inputs
from mpworker.cli import map as map_module
from mpworker.cli.errors import ExitCode
from mpworker.cli.inputs import Lines

# ------------------------------------------------------------ what a user gets


def test_every_line_is_mapped_in_order(folder: Path) -> None:
    done = run("map", "tasks:square", numbers(1000), "-o", "out.jsonl", "-n", 2)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert results() == {n: {"square": n * n} for n in range(1000)}
    assert Path("out.jsonl").read_text().splitlines()[3] == '{"index": 3, "result": {"square": 9}}'
    assert Path("out.failed.jsonl").read_text() == ""


def test_several_inputs_are_one_sequence_and_a_failure_names_its_place(folder: Path) -> None:
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


def test_standard_input_is_an_input_among_others(folder: Path) -> None:
    done = run("map", "tasks:odd", numbers(2), "-", "-o", "out.jsonl", "-n", 2, "--quiet", stdin=b"7\n8\n")
    assert (done.returncode, done.stderr) == (1, "")
    assert results() == {1: 1, 2: 7}
    assert [(entry["input"], entry["line"]) for entry in lines("out.failed.jsonl")] == [("in.txt", 1), ("-", 2)]


def test_a_line_is_its_text_without_the_line_break(folder: Path) -> None:
    Path("in.txt").write_bytes("plain\n\nwindows\r\n\r\r\n tab\t \näöü\u2028x\n\xe9".encode() + b"\xff\n" + b"end\r")
    assert run("map", "tasks:echo", "in.txt", "-o", "out.jsonl", "-n", 2).returncode == 1
    assert results() == dict(enumerate(["plain", "", "windows", "\r", " tab\t ", "äöü\u2028x"])) | {7: "end\r"}
    [failed] = lines("out.failed.jsonl")
    assert failed["error"] == "UnicodeDecodeError"
    assert str(failed["message"]).startswith("the line is not UTF-8: ")


def test_a_line_beyond_the_bound_fails_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "LINE_BYTES_MAX", 10)
    Path("in.txt").write_bytes(b"123456789\n" + b"x" * 35 + b"\nshort\n" + b"y" * 10)
    source = Lines(["in.txt"])
    assert list(source) == [b"123456789\n", None, b"short\n", None]
    assert [source.finished().position for _ in range(4)] == [10, 46, 52, 62]


def test_files_are_items_of_their_own(folder: Path) -> None:
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


def test_a_crash_costs_the_items_that_crash_and_no_other(folder: Path) -> None:
    done = run("map", "tasks:deadly", numbers(3000), "-o", "out.jsonl", "-n", 2)
    assert done.returncode == ExitCode.SOME_FAILED
    assert [entry["index"] for entry in lines("out.failed.jsonl")] == list(range(499, 3000, 500))


def test_standard_input_that_is_closed(folder: Path) -> None:
    shell = f"{shlex.join(str(word) for word in command('map', 'tasks:echo', '-', '-o', 'out.jsonl'))} <&-"
    done = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stderr) == (ExitCode.USAGE, "mpworker: standard input (-) is closed\n")
    assert not Path("out.jsonl").exists()


def test_what_json_cannot_express_fails_and_the_run_goes_on(folder: Path) -> None:
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


def test_a_dead_process_costs_its_item_only(folder: Path) -> None:
    Path("in.txt").write_text("a\nb\ndie\nc\nd\n")
    assert run("map", "tasks:die", "in.txt", "-o", "out.jsonl", "-n", 2).returncode == 1
    assert results() == {0: "a", 1: "b", 3: "c", 4: "d"}
    [failed] = lines("out.failed.jsonl")
    assert (failed["line"], failed["error"]) == (3, "WorkerCrashed")


def test_a_timeout_costs_its_item_only(folder: Path) -> None:
    Path("in.txt").write_text("a\nhang\nb\n")
    assert run("map", "tasks:hang", "in.txt", "-o", "out.jsonl", "-n", 2, "--timeout", 0.3).returncode == 1
    assert results() == {0: "a", 2: "b"}
    [failed] = lines("out.failed.jsonl")
    assert (failed["line"], failed["error"]) == (2, "TaskTimeout")


@pytest.mark.parametrize("options", [["--chunksize", "1"], ["--chunksize", "7"], ["--preload", "tasks"]])
def test_options_do_not_change_results(folder: Path, options: list[str]) -> None:
    assert run("map", "tasks:Times.two", numbers(50), "-o", "out.jsonl", "-n", 2, *options).returncode == 0
    assert results() == {n: 2 * n for n in range(50)}


def test_no_items_are_no_results(folder: Path) -> None:
    assert run("map", "tasks:echo", "-", "-o", "out.jsonl", "-n", 1).returncode == 0
    assert Path("out.jsonl").read_bytes() == b""
    assert lines("out.jsonl.state")[1]["complete"] is True


def test_progress_and_a_summary_are_shown_on_a_terminal(folder: Path) -> None:
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


def test_the_entry_point_exits_with_the_code_of_the_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
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


def test_version_and_help(folder: Path) -> None:
    assert run("--version").stdout == f"mpworker {__version__}\n"
    assert "--resume" in run("map", "--help").stdout


def test_what_a_child_imports_loads_neither_click_nor_rich() -> None:
    code = (
        "import sys, mpworker.cli.item, mpworker.cli.target; sys.exit('click' in sys.modules or 'rich' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=100).returncode == 0


def test_the_session_in_the_documentation(folder: Path) -> None:
    page = (Path(__file__).parents[1] / "docs" / "cli.md").read_text()
    source, session = re.findall(r"```(?:python|console)\n(.*?)```", page, re.DOTALL)[:2]
    Path("primes.py").write_text(source)
    commands = re.findall(r"^\$ (.*)\n", session, re.MULTILINE)
    script = f'mpworker() {{ "{sys.executable}" -m mpworker.cli "$@"; }}; exec 2>&1\n' + "\n".join(commands)
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, timeout=100)
    expected = re.sub(r"^\$ .*\n", "", session, flags=re.MULTILINE)
    seconds = re.compile(r"in [\d.]+ s")
    assert seconds.sub("in", done.stdout) == seconds.sub("in", expected)


# ------------------------------------------------------------ standard output


def test_results_go_to_standard_output_and_all_else_to_standard_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch
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


def test_a_reader_of_standard_output_that_leaves_is_no_news(folder: Path) -> None:
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
def test_standard_output_that_takes_nothing(folder: Path, redirection: str, code: int, said: str) -> None:
    words = command("map", "tasks:echo", numbers(3), "-o", "-", "-n", 1)
    shell = f"{shlex.join(str(word) for word in words)} {redirection}"
    done = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stderr) == (code, said)


def test_a_terminal_that_shows_results_shows_no_progress(folder: Path) -> None:
    shown = _on_terminal("map", "tasks:echo", numbers(2), "-o", "-", "-n", 1, stdout_too=True)
    assert "\x1b" not in shown
    assert shown.splitlines()[:2] == ['{"index": 0, "result": "0"}', '{"index": 1, "result": "1"}']
    assert shown.splitlines()[2].startswith("mpworker: 2 items in ")


# ------------------------------------------------------------ a pool that does not start


def test_a_preload_that_raises_is_a_line_and_a_code_of_its_own(folder: Path) -> None:
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
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(map_module, "ProcessWorker", refuse)
    assert app.run(["map", "tasks:echo", numbers(3), "-o", "out.jsonl"]) == ExitCode.NOT_STARTED
    assert capsys.readouterr().err == "mpworker: no process can be started: Cannot allocate memory\n"


def test_what_is_said_of_an_item_names_the_function_of_the_user(folder: Path) -> None:
    Path("in.txt").write_text("die\nhang\n")
    options = ["-n", 1, "--chunksize", 1]
    assert run("map", "tasks:die", "in.txt", "-o", "dead.jsonl", *options).returncode == 1
    assert run("map", "tasks:hang", "in.txt", "-o", "late.jsonl", *options, "--timeout", 0.5).returncode == 1
    for name in ("dead", "late"):
        [failed] = lines(f"{name}.failed.jsonl")
        assert re.match(r"item \d of map\(tasks:(die|hang)\)", str(failed["message"]))
