"""Children see the world of their client: its path, folder, environment and flags; what they draw is their own."""

import json
import os
import sys
from pathlib import Path

import leaks
import pooljobs
import programs
import pytest
from pooljobs import Gate

from mpworker import ProcessWorker

GUARD = 60.0  # seconds; only a bound for what would hang


def in_each_child(pool: ProcessWorker, gate: Gate, call: object, n: int = 2) -> list[object]:
    """What `call` returns in each of the children: every one is held until all have begun."""

    def held(folder: str) -> object:
        pooljobs.hold(folder)
        return call() if callable(call) else None

    futures = [pool.submit(held, gate.folder) for _ in range(n)]
    gate.wait_begun(n)
    gate.release(n)
    return [future.result() for future in futures]


# ------------------------------------------------------------ path, folder, environment


def test_a_module_on_a_path_that_was_added_at_run_time(tmp_path: Path) -> None:
    late = tmp_path / "late"
    late.mkdir()
    (late / "late_module.py").write_text("def where(): return __file__\nclass Thing:\n    x = 1\n")
    done = programs.run_source(
        f"""
        import pathlib, sys
        from mpworker import ProcessWorker
        sys.path.insert(0, {str(late)!r})
        sys.path.append(pathlib.Path("what the import system ignores"))
        import late_module
        with ProcessWorker(n=1) as w:
            print(w.submit(late_module.where).result())
            thing = w.submit(late_module.Thing).result()
            assert type(thing) is late_module.Thing
            assert w.submit(lambda: [p for p in sys.path if isinstance(p, str)]).result() == [
                p for p in sys.path if isinstance(p, str)]
        """,
        tmp_path,
    )
    assert done.stdout.split() == [str(late / "late_module.py")]


def test_working_directory_environment_and_arguments(tmp_path: Path) -> None:
    folder = tmp_path / "a folder \udcff of odd name"
    folder.mkdir()
    done = programs.run(
        programs.write(
            tmp_path / "script.py",
            f"""
            import os, sys
            os.environ["SET_LATE"] = "\\udc80 and more"
            os.environ.pop("LOST", None)
            os.chdir({str(folder)!r})
            from mpworker import ProcessWorker
            def look():
                return os.getcwd(), dict(os.environ), sys.argv
            with ProcessWorker(n=1) as w:
                cwd, environment, argv = w.submit(look).result()
            assert cwd == os.getcwd()
            assert argv == sys.argv
            assert environment == dict(os.environ), set(environment.items()) ^ set(os.environ.items())
            """,
        ),
        "first",
        "--second",
        env=programs.environment(LOST="x", OMP_NUM_THREADS=None, OPENBLAS_NUM_THREADS="7"),
    )
    assert done.stderr == ""


def test_a_folder_that_is_gone(tmp_path: Path) -> None:
    programs.run_source(
        """
        import os, tempfile
        from mpworker import ProcessWorker
        folder = tempfile.mkdtemp()
        os.chdir(folder)
        os.rmdir(folder)
        with ProcessWorker(n=1) as w:
            assert w.submit(pow, 2, 3).result() == 8
        """,
        tmp_path,
    )


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_standard_streams_that_are_closed(tmp_path: Path, closed: str) -> None:
    # Then the descriptors 0 to 2 are given to what is opened first: it must not be taken for a stream, nor overwritten.
    programs.write(
        tmp_path / "script.py",
        """
        import os
        from mpworker import ProcessWorker
        def work(n):
            print("a line from a child")
            return n * n
        with ProcessWorker(n=2) as w:
            assert list(w.map(work, range(100))) == [n * n for n in range(100)]
            assert w.submit(work, 5).result() == 25
        os.close(os.open("good", os.O_WRONLY | os.O_CREAT))
        """,
    )
    code = (
        f"import subprocess; subprocess.run(['sh', '-c', {f'exec {sys.executable} script.py {closed}'!r}], timeout=60)"
    )
    programs.run("-c", code, cwd=tmp_path)
    assert (tmp_path / "good").exists()


def test_many_open_files_and_a_full_low_range(tmp_path: Path) -> None:
    programs.run_source(
        """
        import os
        from mpworker import ProcessWorker
        files = [os.open(os.devnull, os.O_RDONLY) for _ in range(300)]
        for fd in files:
            os.set_inheritable(fd, True)
        with ProcessWorker(n=2) as w:
            assert w.submit(pow, 2, 3).result() == 8
            # What the client had open is not the children's.
            assert len(w.submit(os.listdir, "/proc/self/fd").result()) < 40
        """,
        tmp_path,
    )


# ------------------------------------------------------------ preload and initializer


def test_preload_imports_before_the_fork(gate: Gate, tmp_path: Path) -> None:
    with ProcessWorker(n=2, preload=["numpy", "pooljobs"]) as pool:
        nursery = pool.processes()["nursery"]

        def look() -> tuple[bool, bool, int]:
            # Memory that the nursery mapped before the fork: the module's own library is there, at the same address.
            mine, theirs = (
                [line.split()[0] for line in Path(f"/proc/{pid}/maps").read_text().splitlines() if "umath" in line]
                for pid in ("self", nursery)
            )
            return "numpy" in sys.modules, bool(mine) and mine == theirs, os.getpid()

        found = in_each_child(pool, gate, look)
        assert [each[:2] for each in found] == [(True, True), (True, True)]  # type: ignore[index]
        # With one thread, or the fork would not have been allowed; the limit is not left in the environment.
        assert pool.submit(lambda: os.environ.get("OPENBLAS_NUM_THREADS")).result() == os.environ.get(
            "OPENBLAS_NUM_THREADS"
        )


def test_without_preload_nothing_is_imported_for_the_user(gate: Gate) -> None:
    with ProcessWorker(n=1) as pool:
        assert not pool.submit(lambda: "numpy" in sys.modules).result()


def test_a_preload_that_leaves_a_thread_is_named(tmp_path: Path) -> None:
    programs.write(
        tmp_path / "threaded.py",
        "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()",
    )
    done = programs.run_source(
        """
        from mpworker import ProcessWorker
        with ProcessWorker(n=1, preload=["json", "threaded"]) as w:
            print(w.submit(pow, 2, 3).exception())
        """,
        tmp_path,
    )
    assert "preload of 'threaded' left 1 running thread(s)" in done.stdout


def test_preload_finds_what_the_client_would(tmp_path: Path) -> None:
    programs.write(tmp_path / "mine.py", "import os\nloaded_in = os.getpid()\nargv_ok = __import__('sys').argv[0]")
    done = programs.run_source(
        """
        import os, sys
        from mpworker import ProcessWorker
        with ProcessWorker(n=1, preload=["mine"]) as w:
            def look():
                import mine
                return mine.loaded_in, os.getppid(), mine.argv_ok
            loaded_in, parent, argv = w.submit(look).result()
            assert loaded_in == parent == w.processes()["nursery"]
            assert argv == sys.argv[0]
        """,
        tmp_path,
    )
    assert done.stderr == ""


def test_the_garbage_collector_is_on_for_what_is_preloaded_and_in_children(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import gc\nwas_on = gc.isenabled()\n")
    done = programs.run_source(
        """
        import gc
        from mpworker import ProcessWorker
        def work():
            import mine
            return mine.was_on, gc.isenabled()
        with ProcessWorker(n=1, preload=["mine"]) as w:
            print(*w.submit(work).result())
        """,
        tmp_path,
    )
    assert done.stdout == "True True\n"


def test_the_initializer_runs_once_in_each_child_before_its_first_task(tmp_path: Path, gate: Gate) -> None:
    path = str(tmp_path / "initialized")

    def initializer(first: str, second: int) -> None:
        pooljobs.note(path, f"{first} {second} {os.getpid()}")

    with ProcessWorker(n=2, initializer=initializer, initargs=("one", 2)) as pool:
        pids = in_each_child(pool, gate, os.getpid)
        list(pool.map(pooljobs.square, range(100)))
        lines = Path(path).read_text().splitlines()
        assert sorted(lines) == sorted(f"one 2 {pid}" for pid in pids)
        # A child that replaces a dead one is initialized too.
        assert pool.submit(os._exit, 3).exception() is not None
        pid = pool.submit(os.getpid)
        assert leaks.wait_until(lambda: len(Path(path).read_text().splitlines()) == 3, GUARD)
        pid.result()


# ------------------------------------------------------------ chance


def test_children_draw_different_numbers(gate: Gate) -> None:
    def draw() -> tuple[object, ...]:
        import random
        import uuid

        import numpy as np

        return (
            random.random(),
            random.getrandbits(64),
            float(np.random.random()),
            int(np.random.randint(1 << 62)),
            float(np.random.default_rng().random()),
            uuid.uuid4().hex,
            os.urandom(8),
        )

    # Preloaded and drawn from, so that the state would be shared if it was not seeded anew.
    with ProcessWorker(n=3, preload=["numpy.random", "random"]) as pool:
        draws = in_each_child(pool, gate, draw, n=3)
        assert pool.submit(os._exit, 3).exception() is not None
        draws.append(pool.submit(draw).result())
    for one in zip(*draws, strict=True):  # type: ignore[call-overload]
        assert len(set(one)) == 4, one


def test_a_seed_that_a_task_sets_is_kept(tmp_path: Path) -> None:
    def seeded() -> list[float]:
        import random

        random.seed(5)
        return [random.random() for _ in range(3)]

    with ProcessWorker(n=1) as pool:
        assert pool.submit(seeded).result() == pool.submit(seeded).result() == seeded()


@pytest.mark.parametrize("seed", [None, "0", "123", "random"], ids=str)
def test_hashes_agree_between_children_and_after_a_replaced_one(tmp_path: Path, seed: str | None) -> None:
    script = programs.write(
        tmp_path / "script.py",
        """
        import os, signal
        from mpworker import ProcessWorker
        texts = ["a", "b" * 30, b"bytes"]
        def work(_):
            return os.getpid(), [hash(t) for t in texts]
        with ProcessWorker(n=2) as w:
            seen = {}
            def look():
                seen.update(w.map(work, range(40), chunksize=1))
            look()
            while len(seen) < 2:
                look()
            w.submit(os._exit, 3).exception()
            while len(seen) < 3:
                look()
            old = w.processes()["nursery"]
            os.kill(old, signal.SIGKILL)
            while len(seen) < 5:
                for f in [w.submit(work, 0) for _ in range(20)]:
                    if not f.exception():
                        seen.update([f.result()])
            assert len(set(map(tuple, seen.values()))) == 1, seen
            if os.environ.get("PYTHONHASHSEED", "random") != "random":
                assert list(seen.values())[0] == [hash(t) for t in texts]
            assert w.submit(os.environ.get, "PYTHONHASHSEED").result() == os.environ.get("PYTHONHASHSEED")
        """,
    )
    programs.run(script, env=programs.environment(PYTHONHASHSEED=seed))


# ------------------------------------------------------------ the interpreter's flags


@pytest.mark.parametrize(
    "flags",
    [
        ("-W", "error"),
        ("-W", "ignore::DeprecationWarning", "-W", "error::UserWarning"),
        ("-X", "dev"),
        ("-O",),
        ("-OO",),
        ("-B",),
        ("-b",),
        ("-s",),
        ("-X", "utf8=0", "-X", "int_max_str_digits=5000"),
        ("-X", "faulthandler"),
        ("-I",),
        ("-E",),
    ],
    ids="".join,
)
def test_flags_pass_on(tmp_path: Path, flags: tuple[str, ...]) -> None:
    # -I and -E are about how an interpreter finds its own modules: a child is given the client's path.
    script = programs.write(
        tmp_path / "script.py",
        f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parent.parent)!r})  # for -I and -E
        def look():
            import faulthandler, warnings
            flags = sys.flags
            return (
                [flags.debug, flags.optimize, flags.dont_write_bytecode, flags.no_user_site, flags.bytes_warning],
                [flags.dev_mode, flags.utf8_mode],
                sys.warnoptions,
                sys.get_int_max_str_digits(),
                faulthandler.is_enabled(),
                # But for the one about forks in a process with threads, which a child has: its heartbeat.
                [str(f) for f in warnings.filters if "fork" not in str(f)],
                __debug__,
            )
        import json
        from mpworker import ProcessWorker
        mine = look()
        with ProcessWorker(n=1) as w:
            theirs = w.submit(look).result()
        print(json.dumps([mine, theirs]))
        """,
    )
    # What -I and -E tell to ignore, the nursery must not heed either.
    ignored = {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONOPTIMIZE": "2", "PYTHONDEVMODE": "1"}
    set_too = ignored if flags[0] in ("-I", "-E") else dict.fromkeys(ignored)
    done = programs.run(*flags, script, cwd=tmp_path, env=programs.environment(**set_too))
    mine, theirs = json.loads(done.stdout)
    assert theirs == mine
    assert done.stderr == "", "the flags make nothing of ours complain"


def test_a_warning_that_is_an_error_is_one_in_a_child(tmp_path: Path) -> None:
    done = programs.run_source(
        """
        import warnings
        from mpworker import ProcessWorker
        with ProcessWorker(n=1) as w:
            print(type(w.submit(warnings.warn, "careful").exception()).__name__)
        """,
        tmp_path,
        "-W",
        "error",
    )
    assert done.stdout == "UserWarning\n"
    assert done.stderr == ""


def test_python_variables_of_the_environment_do_not_disturb(tmp_path: Path) -> None:
    script = programs.write(
        tmp_path / "script.py",
        """
        from mpworker import ProcessWorker
        with ProcessWorker(n=1) as w:
            print(w.submit(pow, 2, 3).result())
        """,
    )
    started = programs.write(tmp_path / "startup.py", "raise SystemExit('PYTHONSTARTUP was read')")
    done = programs.run(
        script,
        env=programs.environment(
            PYTHONSTARTUP=str(started), PYTHONINSPECT="", PYTHONSAFEPATH="1", PYTHONUNBUFFERED="1", PYTHONDEVMODE="1"
        ),
    )
    assert done.stdout == "8\n"
    assert done.stderr == ""
