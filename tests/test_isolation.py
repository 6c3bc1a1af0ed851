"""The supervisor and the nursery run on a path of their own, and neither unpickles anything."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import programs
import pytest

import mpworker

ROOT = Path(mpworker.__file__).parent

# Modules of the standard library that the supervisor or the nursery use, directly or not.
SHADOWED = [
    *("abc", "array", "ast", "collections", "contextlib", "ctypes", "dataclasses", "dis", "enum", "errno", "fcntl"),
    *(
        "functools",
        "gc",
        "inspect",
        "io",
        "json",
        "linecache",
        "logging",
        "mmap",
        "os",
        "pickle",
        "platform",
        "random",
        "re",
        "resource",
        "secrets",
    ),
    *("select", "selectors", "signal", "site", "socket", "stat", "struct", "subprocess", "tempfile", "threading"),
    *(
        "time",
        "textwrap",
        "token",
        "tokenize",
        "traceback",
        "types",
        "typing",
        "uuid",
        "warnings",
        "weakref",
        "sitecustomize",
        "usercustomize",
    ),
]

# What stands in the user's folder under such a name: it says where it was imported, then it gives way to the real one.
STAND_IN = """
import sys as _sys
with open("/proc/self/cmdline") as _file:
    _line = _file.read().replace("\\0", " ")
_fd = __import__("posix").open({marks!r}, 0o2001 | 0o100, 0o600)
_line = f"{{__name__}} {{__import__('posix').getpid()}} " + _line.replace("\\n", " ") + "\\n"
__import__("posix").write(_fd, _line.encode())
__import__("posix").close(_fd)
_here, _path = {folder!r}, _sys.path[:]
_sys.path[:] = [p for p in _path if p not in ("", _here)]
_mine = _sys.modules.pop(__name__)
try:
    __import__(__name__)
except ImportError:
    _sys.modules[__name__] = _mine
finally:
    _sys.path[:] = _path
"""

WORK = """
import sys
from mpworker import ProcessWorker
def work(n):
    return n * n
def fail(n):
    raise ValueError(n)
with ProcessWorker(n=2) as w:
    assert list(w.map(work, range(50))) == [n * n for n in range(50)]
    assert isinstance(w.submit(fail, 3).exception(), ValueError)
    assert w.submit(lambda: __import__("os")._exit(3)).exception() is not None
    assert w.submit(work, 3).result() == 9
    import signal, os
    first = w.processes()
    os.kill(w.processes()["nursery"], signal.SIGKILL)
    while True:
        f = w.submit(work, 4)
        second = w.processes()
        if f.exception() is None and second["nursery"] != first["nursery"]:
            break
    assert f.result() == 16
print("worked", first["supervisor"], first["nursery"], second["nursery"])
"""


def stand_ins(folder: Path, marks: Path) -> None:
    folder.mkdir(exist_ok=True)
    for name in SHADOWED:
        (folder / f"{name}.py").write_text(STAND_IN.format(marks=str(marks), folder=str(folder)))


@pytest.mark.parametrize("by", ["script's folder", "working directory", "PYTHONPATH"])
def test_no_file_of_the_users_stands_in_for_a_module_of_theirs(tmp_path: Path, by: str) -> None:
    folder, marks, elsewhere = tmp_path / "user", tmp_path / "marks", tmp_path / "elsewhere"
    stand_ins(folder, marks)
    elsewhere.mkdir()
    if by == "script's folder":
        done = programs.run(programs.write(folder / "script.py", WORK), cwd=elsewhere)
    elif by == "working directory":
        done = programs.run("-c", dedent(WORK), cwd=folder)
    else:
        done = programs.run(
            programs.write(elsewhere / "script.py", WORK),
            cwd=elsewhere,
            env=programs.environment(PYTHONPATH=programs.python_path(folder)),
        )
    said, *pids = done.stdout.split()
    assert said == "worked"
    seen = marks.read_text().splitlines() if marks.exists() else []
    assert any("script.py" in line or "assert list" in line for line in seen), "the stand-ins work: the client has some"
    assert len(pids) == 3
    assert [line for line in seen if line.split()[1] in pids or "supervisor.__main__" in line] == []


def test_nothing_of_theirs_breaks_when_such_a_file_is_broken(tmp_path: Path) -> None:
    # The client imports before its path leads to the broken files; whatever the others imported from there would raise.
    # That goes for what a child needs to unpickle a function by value, too.
    folder = tmp_path / "user"
    folder.mkdir()
    for name in SHADOWED:
        (folder / f"{name}.py").write_text("raise SystemError(f'{__name__} of the user was imported')\n")
    source = f"""
        import sys
        import mpworker.worker, mpworker.launch, mpworker.client, cloudpickle, signal, os
        sys.path.insert(0, {str(folder)!r})
        os.chdir({str(folder)!r})
        os.environ["PYTHONPATH"] = {str(folder)!r} + os.pathsep + os.environ.get("PYTHONPATH", "")
    """
    done = programs.run_source(dedent(source) + WORK, tmp_path)
    assert done.stdout.startswith("worked ")
    assert done.stderr == ""


def test_a_child_imports_the_users_own_module_of_such_a_name(tmp_path: Path) -> None:
    for name in ("secrets", "statistics", "colorsys"):
        (tmp_path / f"{name}.py").write_text(f"def whose():\n    return 'the user\\'s {name}'\n")
    done = programs.run_source(
        """
        import sys
        folder, sys.path[:] = sys.path[0], sys.path[1:]
        from mpworker import ProcessWorker
        import mpworker.worker
        sys.path.insert(0, folder)
        def work(name):
            return __import__(name).whose()
        with ProcessWorker(n=1) as w:
            print(list(w.map(work, ["statistics", "colorsys"])))
        """,
        tmp_path,
    )
    assert done.stdout.strip() == """["the user's statistics", "the user's colorsys"]"""


# ------------------------------------------------------------ no unpickling

# An interpreter that writes down what the process of its kind imports and finds while unpickling, for its whole life.
# Nothing of the product takes part: the audit hook is set before the product's first line.
SPY = """#!{python} -IS
import os, sys
arguments = sys.argv[1:]
at = arguments.index("-c") + 1
kind = "supervisor" if "supervisor.__main__" in arguments[at] else "nursery"
hook = '''
import os as _os, sys as _sys
_pid = _os.getpid()
def _hook(event, args):
    if event in ("import", "os.fork", "os.posix_spawn", "pickle.find_class", "marshal.loads", "exec", "cloudpickle"):
        if event == "exec":
            return
        who = "KIND" if _os.getpid() == _pid else "child"
        what = " ".join(str(each)[:80] for each in args[:2]) if event != "marshal.loads" else ""
        try:
            log = _os.open({log!r}, _os.O_WRONLY | _os.O_APPEND | _os.O_CREAT | _os.O_CLOEXEC, 0o600)
            _os.write(log, f"{{who}} {{_os.getpid()}} {{event}} {{what}}\\\\n".encode())
            _os.close(log)
        except OSError:
            pass
_sys.addaudithook(_hook)
'''.replace("KIND", kind)
arguments[at] = hook + arguments[at]
os.execv({python!r}, [{python!r}, *arguments])
"""


def test_the_live_supervisor_never_unpickles(tmp_path: Path) -> None:
    log = tmp_path / "log"
    spy = tmp_path / "spy"
    spy.write_text(SPY.format(python=sys.executable, log=str(log)))
    spy.chmod(0o700)
    done = programs.run_source(
        f"""
        import os, json
        from mpworker import ProcessWorker
        class Bomb:
            "Writes down where it is unpickled."
            def __init__(self, path): self.path = path
            def __reduce__(self): return make, (self.path,)
        def make(path):
            with open(path, "a") as file:
                file.write(f"{{os.getpid()}}\\n")
            return Bomb(path)
        def work(bomb): return bomb
        def fail(bomb): raise ValueError(bomb)
        path = {str(tmp_path / "unpickled")!r}
        bomb = Bomb(path)
        with ProcessWorker(n=2, python={str(spy)!r}, initializer=len, initargs=([bomb],)) as w:
            w.submit(work, bomb).result()
            w.submit(lambda: bomb).result()
            list(w.map(work, [bomb] * 50))
            w.submit(fail, bomb).exception()
            w.submit(os._exit, 3).exception()
            w.submit(work, Bomb(path)).cancel()
            w.options(retries=1, timeout=50).submit(fail, bomb).exception()
            list(w.map(fail, [bomb] * 3, return_exceptions=True))
            w.submit(work, [bomb, "x" * 3_000_000]).result()
            processes = w.processes()
        print(json.dumps([os.getpid(), processes["supervisor"], processes["nursery"]]))
        """,
        tmp_path,
    )
    client, supervisor, nursery = json.loads(done.stdout)
    unpickled = set(map(int, (tmp_path / "unpickled").read_text().split()))
    assert client in unpickled
    assert len(unpickled) >= 3, "children did"
    assert not unpickled & {supervisor, nursery}
    lines = [line.split(" ", 3) for line in log.read_text().splitlines()]
    for kind, pid in (("supervisor", supervisor), ("nursery", nursery)):
        events = [(event, what) for who, number, event, what in lines if who == kind and int(number) == pid]
        assert ("import", "mpworker.ipc.codec None") in events or any("mpworker.ipc" in what for _, what in events)
        assert [event for event in events if event[0] == "pickle.find_class"] == []
    assert any(who == "child" and event == "pickle.find_class" for who, _, event, _ in lines), "the spy sees it"
    imported = {what.split()[0] for who, _, event, what in lines if who == "supervisor" and event == "import"}
    assert "mpworker.supervisor.loop" in imported
    assert {name for name in imported if name.split(".")[0] in ("pickle", "_pickle", "cloudpickle", "marshal")} == set()
    assert not any(name.startswith("mpworker.child") for name in imported)


def test_no_library_that_unpickles_is_mapped_by_the_live_supervisor(tmp_path: Path) -> None:
    with mpworker.ProcessWorker(n=1) as pool:
        assert pool.submit(pow, 2, 3).result() == 8
        supervisor = pool.processes()["supervisor"]
        maps = Path(f"/proc/{supervisor}/maps").read_text()
    assert "_native" in maps
    assert "_pickle" not in maps
    assert "_pickle" in Path("/proc/self/maps").read_text() or "_pickle" in sys.builtin_module_names


def _imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "__import__":
            found.update(argument.value for argument in node.args if isinstance(argument, ast.Constant))
    return found


def test_no_file_of_the_supervisor_names_a_module_that_unpickles() -> None:
    files = [path for path in sorted((ROOT / "supervisor").glob("*.py")) if path.name != "nursery.py"]
    assert len(files) > 5
    for path in files:
        names = _imports(path)
        assert {name for name in names if name.split(".")[0] in ("pickle", "marshal", "cloudpickle", "shelve")} == set()
        assert not any("payload" in name or name.startswith("mpworker.child") for name in names), path
    # The nursery imports the child's code, which unpickles, and calls it in its forks alone.
    assert "pickle" not in _imports(ROOT / "supervisor" / "nursery.py")
    assert "mpworker.ipc.payload" not in _imports(ROOT / "supervisor" / "nursery.py")


def test_the_supervisor_starts_isolated_and_nothing_of_the_environment_can_change_it(tmp_path: Path) -> None:
    with mpworker.ProcessWorker(n=1) as pool:
        assert pool.submit(pow, 2, 3).result() == 8
        processes = pool.processes()
        arguments = Path(f"/proc/{processes['supervisor']}/cmdline").read_text().split("\0")
        assert arguments[1:4] == ["-I", "-S", "-c"]
        assert Path(f"/proc/{processes['nursery']}/cmdline").read_text().split("\0")[1] == "-P"
        assert os.getpgid(processes["supervisor"]) == processes["supervisor"]


def test_a_pool_has_no_terminal(tmp_path: Path) -> None:
    source = """
import errno, os, pathlib
from mpworker import ProcessWorker

def look():
    try:
        os.open("/dev/tty", os.O_RDWR)
    except OSError as error:
        return errno.errorcode[error.errno]

assert look() is None
with ProcessWorker(n=1) as w:
    assert w.submit(look).result() == "ENXIO"
    pids = w.processes()
    for pid in (pids["supervisor"], pids["nursery"]):
        assert pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[4] == "0"
print("no terminal")
"""
    programs.write(tmp_path / "script.py", source)
    spawn = "import pty, sys; sys.exit(pty.spawn([sys.executable, 'script.py']))"
    assert "no terminal" in programs.run("-c", spawn, cwd=tmp_path).stdout


def test_a_client_of_another_session_is_not_needed(tmp_path: Path) -> None:
    # Started by a process that leaves at once, as daemons are.
    script = programs.write(tmp_path / "script.py", WORK)
    done = subprocess.run(
        ["setsid", "--wait", sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.startswith("worked ")
