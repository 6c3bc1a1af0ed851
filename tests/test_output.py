"""What children print, warn and log arrives at the client's streams: whole lines, in order per child, nothing lost.

What holds: a line that ends is written at once, by one write, so it survives `os._exit` and SIGKILL right after. A line
that was begun is written when the child next waits for work, or ends as it should. Lines of up to 4096 bytes do not mix
in a pipe; the system promises no more.
"""

from pathlib import Path

import programs
import pytest


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_lines_are_whole_and_in_order_in_a_pipe(tmp_path: Path, unbuffered: str) -> None:
    script = programs.write(
        tmp_path / "script.py",
        """
        import os, sys
        from mpworker import ProcessWorker
        def work(n):
            sys.said = getattr(sys, "said", 0) + 1  # items may come to a child in another order than the input's
            print("out", os.getpid(), sys.said, n, "x" * 500)
            print("err", os.getpid(), sys.said, n, "y" * 500, file=sys.stderr)
        with ProcessWorker(n=2) as w:
            list(w.map(work, range(2000), chunksize=10))
        """,
    )
    done = programs.run(script, env=programs.environment(PYTHONUNBUFFERED=unbuffered))
    for name, text, filler in (("out", done.stdout, "x"), ("err", done.stderr, "y")):
        last: dict[str, int] = {}
        seen = set()
        for line in text.splitlines():
            kind, pid, said, number, rest = line.split(" ")
            assert (kind, rest) == (name, filler * 500), "a whole line"
            assert int(said) == last.get(pid, 0) + 1, "in order per child"
            last[pid] = int(said)
            seen.add(int(number))
        assert seen == set(range(2000)), "nothing is lost"


def test_nothing_is_lost_to_a_file(tmp_path: Path) -> None:
    programs.write(
        tmp_path / "script.py",
        """
        import os
        from mpworker import ProcessWorker
        print("first", flush=True)
        with ProcessWorker(n=2) as w:
            for f in [w.submit(print, n) for n in range(200)]:
                f.result()
        print("last")
        """,
    )
    code = "import subprocess, sys; subprocess.run([sys.executable, 'script.py'], stdout=open('out', 'wb'), check=True)"
    programs.run("-c", code, cwd=tmp_path)
    lines = (tmp_path / "out").read_text().split()
    assert (lines[0], lines[-1]) == ("first", "last")
    assert sorted(map(int, lines[1:-1])) == list(range(200))


def test_a_line_right_before_a_death_arrives(tmp_path: Path) -> None:
    done = programs.run_source(
        """
        import os, signal, sys
        from mpworker import ProcessWorker
        def leave():
            print("before exit")
            print("begun", end="")
            os._exit(3)
        def die():
            print("before kill")
            print("error before kill", file=sys.stderr)
            os.kill(os.getpid(), signal.SIGKILL)
        with ProcessWorker(n=1) as w:
            assert w.submit(leave).exception().exit_code == 3
            assert w.submit(die).exception().signal == 9
        """,
        tmp_path,
    )
    assert done.stdout == "before exit\nbefore kill\n"
    assert done.stderr == "error before kill\n"


def test_a_line_that_does_not_end_is_there_when_its_task_has_ended_and_the_pool(tmp_path: Path) -> None:
    done = programs.run_source(
        """
        import sys
        from mpworker import ProcessWorker
        with ProcessWorker(n=1) as w:
            w.submit(print, "no end", end=" ").result()
            w.submit(sys.stdout.write, "nor here").result()
        print(" and here")
        """,
        tmp_path,
    )
    assert done.stdout == "no end nor here and here\n"


def test_what_an_exit_handler_of_a_child_says_arrives(tmp_path: Path) -> None:
    done = programs.run_source(
        """
        import atexit
        from mpworker import ProcessWorker
        with ProcessWorker(n=1, initializer=atexit.register, initargs=(print, "goodbye")) as w:
            w.submit(print, "work").result()
        """,
        tmp_path,
    )
    assert done.stdout == "work\ngoodbye\n"


def test_warnings_and_logs_arrive(tmp_path: Path) -> None:
    done = programs.run_source(
        """
        import logging, sys, warnings
        from mpworker import ProcessWorker
        def setup():
            logging.basicConfig(format="%(levelname)s:%(message)s", level=logging.INFO)
        def work(n):
            warnings.warn(f"warned of {n}")
            logging.getLogger("task").info("did %s", n)
            logging.error("bad %s", n)
        with ProcessWorker(n=1, initializer=setup) as w:
            w.submit(work, 5).result()
        """,
        tmp_path,
    )
    lines = done.stderr.splitlines()
    assert any("UserWarning: warned of 5" in line for line in lines)
    assert [line for line in lines if line.endswith(" 5") and ":" in line and "Warn" not in line] == [
        "INFO:did 5",
        "ERROR:bad 5",
    ]


def test_a_task_may_close_or_replace_its_streams(tmp_path: Path) -> None:
    done = programs.run_source(
        """
        import io, os, sys
        from mpworker import ProcessWorker
        def close():
            sys.stdout.close()
            return os.getpid()
        def replace():
            sys.stdout = io.StringIO()
            print("to nobody")
            return os.getpid()
        def broken():
            class Broken:
                def flush(self): raise ValueError
            sys.stdout = Broken()
            return os.getpid()
        with ProcessWorker(n=1) as w:
            pids = {w.submit(call).result() for call in (close, replace, broken, os.getpid)}
            assert len(pids) == 1
            assert w.submit(pow, 2, 3).result() == 8
        """,
        tmp_path,
    )
    assert done.stdout == ""
    assert done.stderr == ""


def test_a_reader_that_is_gone_stops_nobody(tmp_path: Path) -> None:
    # `script | head -1`: the children's lines meet a broken pipe; the pool still ends its work.
    programs.write(
        tmp_path / "script.py",
        """
        import sys
        from mpworker import ProcessWorker
        def work(n):
            try:
                print("line", n)
            except BrokenPipeError:
                pass
            return n
        with ProcessWorker(n=2) as w:
            total = sum(w.map(work, range(3000)))
        print(total, file=sys.stderr)
        """,
    )
    code = """
import subprocess, sys
process = subprocess.Popen([sys.executable, "script.py"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
process.stdout.readline()
process.stdout.close()
print(process.stderr.read())
process.stderr.close()
process.wait(60)
"""
    assert programs.run("-c", code, cwd=tmp_path).stdout.split() == [str(sum(range(3000)))]


def test_a_childs_stdin_is_empty_and_the_clients_is_its_own(tmp_path: Path) -> None:
    script = programs.write(
        tmp_path / "script.py",
        """
        import sys
        from mpworker import ProcessWorker
        with ProcessWorker(n=1) as w:
            print(repr(w.submit(lambda: sys.stdin.read()).result()))
            print(repr(w.submit(input).exception()))
        print(repr(sys.stdin.read()))
        """,
    )
    done = programs.run(script, stdin="for the client")
    assert done.stdout.splitlines() == ["''", "EOFError('EOF when reading a line')", "'for the client'"]
