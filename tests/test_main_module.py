"""What `__main__` defines works, however it came to be `__main__`: no guard, no file, no module is needed."""

import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path
from textwrap import dedent

import programs
import pytest

# One program, run in every way that a program can be: what it defines goes to children and comes back.
PROGRAM = """
import dataclasses, enum, functools, os, typing
from mpworker import ProcessWorker

factor = 3

class Point:
    made = 0
    def __init__(self, x):
        type(self).made += 1
        self.x = x
    def doubled(self):
        return Point(2 * self.x)

class Color(enum.Enum):
    RED = 1
    BLUE = 2

class Flags(enum.IntFlag):
    A = 1
    B = 2

@dataclasses.dataclass(frozen=True)
class Data:
    name: str
    numbers: list = dataclasses.field(default_factory=list)

class Pair(typing.NamedTuple):
    left: int
    right: int

class Sub(Point):
    def doubled(self):
        return super().doubled()

class Broken(Exception):
    def __init__(self, code, text):
        super().__init__(code, text)
        self.code = code

class Slots:
    __slots__ = ("a",)

@dataclasses.dataclass(slots=True, frozen=True)
class SlotsData:
    a: int
    b: str = "b"

class Kept:
    where = []

def kept(_):
    made = Kept()
    made.seen = os.getpid(), id(Kept.where)
    return made

def scale(n): return factor * n
def make(n):
    def closure(m): return n + m
    return closure
def fail(code): raise Broken(code, "broken")
@functools.lru_cache
def fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)
@functools.singledispatch
def describe(value): return "something"
@describe.register
def _(value: int): return "an int"
@describe.register(Point)
def _(value): return f"a point at {describe(value.x)}"
@describe.register(list)
def _(value): return [describe(each) for each in value]
class Describer:
    @functools.singledispatchmethod
    def describe(self, value): return "something"
    @describe.register
    def _(self, value: int): return "an int"
def slots(value):
    s = Slots()
    s.a = value
    return s

def check(w):
    assert w.submit(scale, 2).result() == 6
    assert w.submit(lambda n: n + factor, 2).result() == 5
    assert w.submit(make(10), 1).result() == 11
    assert w.submit(make, 10).result()(1) == 11, "a closure as a result"
    assert w.submit(functools.partial(scale, 4)).result() == 12
    assert w.submit(fib, 20).result() == 6765
    assert list(w.map(scale, range(4))) == [0, 3, 6, 9]

    before = dict(vars(Point))
    points = [Point(n) for n in range(5)]
    assert Point.made == 5
    results = [f.result() for f in [w.submit(Point.doubled, p) for p in points]] + list(w.map(Point.doubled, points))
    assert [type(p) for p in results] == [Point] * 10, "instances of this very class"
    assert [p.x for p in results] == [0, 2, 4, 6, 8] * 2
    assert Point.made == 5, "what children count is theirs"
    assert all(vars(Point)[name] is value for name, value in before.items() if name != "made"), "methods are the same"
    result = w.submit(points[1].doubled).result()
    assert type(result) is Point and type(w.submit(Sub, 1).result()) is Sub
    assert isinstance(w.submit(Sub(2).doubled).result(), Point)
    assert w.submit(lambda: Point).result() is Point, "the class itself"
    assert w.submit(SlotsData, 5).result() == SlotsData(5) and w.submit(lambda d: d.b, SlotsData(5)).result() == "b"
    assert w.submit(slots, 5).result().a == 5 and type(w.submit(slots, 5).result()) is Slots

    assert w.submit(lambda c: (c, c is Color.RED, Color.BLUE), Color.RED).result() == (Color.RED, True, Color.BLUE)
    assert w.submit(lambda: Color.BLUE).result() is Color.BLUE
    assert list(w.map(Color, [1, 2])) == [Color.RED, Color.BLUE]
    assert w.submit(lambda f: f | Flags.B, Flags.A).result() is Flags.A | Flags.B
    data = Data("a", [1])
    assert w.submit(dataclasses.replace, data, name="b").result() == Data("b", [1])
    assert type(w.submit(Data, "c").result()) is Data
    assert w.submit(Pair, 1, 2).result() == Pair(1, 2) and type(w.submit(Pair, 1, 2).result()) is Pair
    assert {w.submit(lambda: Color.RED).result(): 1}[Color.RED] == 1

    seen = {each.seen for each in w.map(kept, range(8), chunksize=2)}
    assert len(seen) == len({pid for pid, _ in seen}), "no class of a child is changed by the results that it sends"

    error = w.submit(fail, 7).exception()
    assert type(error) is Broken and error.code == 7
    try:
        list(w.map(fail, [8]))
    except Broken as caught:
        assert caught.code == 8
    else:
        raise AssertionError("no exception")
    assert isinstance(w.options(retries=1).submit(fail, 9).exception(), Broken)

    right = ["something", "an int", "a point at an int", ["an int", "a point at something"]]
    assert describe(["", 1, Sub(1), [2, Point("")]]) == right, "its cache is in use"
    assert list(w.map(describe, ["", 1, Sub(1), [2, Point("")]])) == right
    assert w.submit(describe, 1).result() == w.submit(lambda n: describe(n), 1).result() == "an int"
    back = w.submit(lambda: describe).result()
    assert (back([1, ""]), back.__name__) == (["an int", "something"], "describe")
    assert w.submit(Describer().describe, 1).result() == "an int"
    assert w.submit(lambda d: d.describe(""), Describer()).result() == "something"
"""
RUN = """
with ProcessWorker(n=2) as w:
    check(w)
    globals()["factor"] = 30
    assert w.submit(scale, 2).result() == 60
print("all is well")
"""


def test_a_script_without_a_guard(tmp_path: Path) -> None:
    done = programs.run_source(PROGRAM + RUN, tmp_path)
    assert done.stdout == "all is well\n", "and it ran once: no child imports it"
    assert done.stderr == ""


def test_python_c(tmp_path: Path) -> None:
    assert programs.run("-c", PROGRAM + RUN, cwd=tmp_path).stdout == "all is well\n"


def test_a_program_from_stdin(tmp_path: Path) -> None:
    # A child has another stdin: it cannot eat the rest of the program.
    assert programs.run("-", cwd=tmp_path, stdin=PROGRAM + RUN).stdout == "all is well\n"


def test_python_m(tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").touch()
    programs.write(tmp_path / "package" / "__main__.py", PROGRAM + RUN)
    assert programs.run("-m", "package", cwd=tmp_path).stdout == "all is well\n"


def test_a_zip_archive(tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(tmp_path / "program.zip", "w") as archive:
        archive.writestr("__main__.py", PROGRAM + RUN)
    assert programs.run(tmp_path / "program.zip", cwd=tmp_path).stdout == "all is well\n"


def test_a_program_without_a_file_that_is_run_by_another(tmp_path: Path) -> None:
    runner = "import runpy\nrunpy.run_path('program.py', run_name='__main__')\n"
    programs.write(tmp_path / "program.py", PROGRAM + RUN)
    assert programs.run_source(runner, tmp_path).stdout == "all is well\n"


# ------------------------------------------------------------ cells

CELLS = [
    PROGRAM,
    "w = ProcessWorker(n=2)",
    "check(w)",
    # A class of the same name in a later cell is the new one; old instances stay what they were.
    "old = w.submit(Point, 1).result(); Old = Point",
    "class Point:\n    def __init__(self, x): self.x = ('new', x)\n    def doubled(self): return self.x\n",
    "new = w.submit(Point, 1).result()",
    "assert type(new) is Point and new.x == ('new', 1) and Point is not Old and type(old) is Old",
    "assert w.submit(lambda p: (p.x, type(p).__name__), old).result() == (1, 'Point')",
    "assert w.submit(Old.doubled, old).result().x == ('new', 2), 'the old method sees the new global'",
    # A function that is defined anew, one that was sent once before.
    "def scale(n): return n",
    "assert w.submit(scale, 5).result() == 5 and list(w.map(scale, [6])) == [6]",
    "factor = 100",
    "assert w.submit(lambda: factor).result() == 100",
    "def apply(n): return helper(n)",
    "error = w.submit(apply, 1).exception()",
    "assert isinstance(error, NameError) and 'helper' in str(error)",
    "def helper(n): return -n",
    "assert w.submit(apply, 1).result() == -1",
    "class Color(enum.Enum):\n    GREEN = 1\n",
    "assert w.submit(lambda: Color.GREEN).result() is Color.GREEN and list(w.map(Color, [1])) == [Color.GREEN]",
    "Point.added = lambda self: 'added later'",
    "assert w.submit(lambda p: p.added(), new).result() == 'added later'",
    "assert w.submit(Point, 2).result().added() == 'added later'",
    "w.shutdown()",
    "print('all is well')",
]


def test_cells_of_a_notebook(tmp_path: Path) -> None:
    # As ipykernel does it: `__main__` has no file, each cell is compiled and run in its namespace.
    source = f"""
        import sys, types
        main = types.ModuleType("__main__")
        main.__spec__ = None
        sys.modules["__main__"] = main
        for number, cell in enumerate({CELLS!r}):
            exec(compile(cell, f"<ipython-input-{{number}}>", "exec"), main.__dict__)
    """
    assert programs.run_source(source, tmp_path).stdout == "all is well\n"


def test_code_interact(tmp_path: Path) -> None:
    source = f"""
        import code, sys
        import __main__
        console = code.InteractiveConsole(__main__.__dict__)
        def crash(): sys.excepthook(*sys.exc_info()); sys.exit(1)
        console.showtraceback = crash
        for cell in {CELLS!r}:
            for line in cell.splitlines() if cell is not {CELLS!r}[0] else []:
                console.push(line)
            if cell.startswith("\\n"):
                exec(cell, __main__.__dict__)
            console.push("")
    """
    assert programs.run_source(source, tmp_path).stdout.endswith("all is well\n")


def test_the_interactive_interpreter_in_a_pipe(tmp_path: Path) -> None:
    lines = [
        "from mpworker import ProcessWorker",
        "w = ProcessWorker(n=2)",
        "def f(n): return 6 * n",
        "",
        "class C: x = f",
        "",
        "w.submit(f, 7).result(), type(w.submit(C).result()) is C, list(w.map(lambda n: f(n) + 1, range(3)))",
        "def f(n): return -n",
        "",
        "w.submit(f, 7).result(), w.submit(C.x, 7).result()",
    ]
    done = programs.run("-i", "-q", cwd=tmp_path, stdin="\n".join(lines) + "\n")
    assert done.stdout.splitlines() == ["(42, True, [1, 7, 13])", "(-7, 42)"]


def test_the_interactive_interpreter_on_a_terminal(tmp_path: Path) -> None:
    primary, secondary = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-i", "-q"],
        stdin=secondary,
        stdout=secondary,
        stderr=secondary,
        cwd=tmp_path,
        env=programs.environment(TERM="dumb", PYTHON_BASIC_REPL="1"),
        start_new_session=True,
    )
    os.close(secondary)
    seen = ""

    def expect(text: str) -> None:
        nonlocal seen
        end = time.monotonic() + programs.GUARD_SECONDS
        while text not in seen:
            assert select.select([primary], [], [], end - time.monotonic())[0], f"no {text!r} in {seen!r}"
            seen += os.read(primary, 4096).decode(errors="replace")
        seen = seen[seen.index(text) + len(text) :]

    def say(line: str, then: str = ">>> ") -> None:
        os.write(primary, f"{line}\n".encode())
        expect(then)

    try:
        expect(">>> ")
        say("from mpworker import ProcessWorker")
        say("w = ProcessWorker(n=1)")
        say("def f(n): return 6 * n", then="... ")
        say("")
        say("w.submit(f, 7).result()", then="\r\n42\r\n")
        expect(">>> ")
        say("class C: x = 5", then="... ")
        say("")
        say("type(w.submit(C).result()) is C", then="\r\nTrue\r\n")
        expect(">>> ")
        say("w.submit(print, 'from a', 'child').result()", then="\r\nfrom a child\r\n")
        os.write(primary, b"exit()\n")  # without a stop: it drains
        assert process.wait(programs.GUARD_SECONDS) == 0
    finally:
        process.kill()
        process.wait()
        os.close(primary)


# ------------------------------------------------------------ the client's classes stay what they are


@pytest.mark.parametrize("how", ["submit", "map", "exception"])
def test_results_never_reset_a_class_of_the_client(tmp_path: Path, how: str) -> None:
    done = programs.run_source(
        f"""
        from mpworker import ProcessWorker
        class Tracked(Exception):
            log = []
            count = 0
            def method(self): return "old"
        original = Tracked.method
        def work(_):
            Tracked.log.append("child")
            Tracked.count += 1
            return Tracked("x")
        def fail(_):
            raise work(_)
        how = {how!r}
        with ProcessWorker(n=1) as w:
            for n in range(3):
                Tracked.count += 1
                Tracked.log.append(n)
                Tracked.method = lambda self, n=n: n
                if how == "submit":
                    value = w.submit(work, 0).result()
                elif how == "map":
                    value, = w.map(work, [0])
                else:
                    value = w.submit(fail, 0).exception()
                assert type(value) is Tracked
                assert value.method() == n, "what was set after the class was sent first"
        assert (Tracked.log, Tracked.count) == ([0, 1, 2], 3)
        """,
        tmp_path,
    )
    assert done.stderr == ""


def test_a_class_that_only_children_know_comes_once(tmp_path: Path) -> None:
    programs.run_source(
        """
        from mpworker import ProcessWorker
        def work(_):
            class Local:
                n = 1
            return Local()
        def twice(_):
            class Local: pass
            return Local(), Local()
        with ProcessWorker(n=1) as w:
            one, other = w.submit(twice, 0).result()
            assert type(one) is type(other)
            first = w.submit(work, 0).result()
            type(first).n = 5
            again = w.submit(lambda x: x, first).result()
            assert type(again) is type(first) and again.n == 5
        """,
        tmp_path,
    )


def test_the_source_is_shown_in_a_childs_traceback(tmp_path: Path) -> None:
    source = dedent(
        """
        from mpworker import ProcessWorker
        def fail():
            raise ValueError("bad")  # this very line
        with ProcessWorker(n=1) as w:
            w.submit(fail).result()
        """
    )
    done = programs.run_source(source, tmp_path, check=False)
    assert done.returncode == 1
    assert "# this very line" in done.stderr
    assert done.stderr.splitlines()[-1] == "ValueError: bad"


UNGUARDED = """
from mpworker import ProcessWorker
def score(n): return n * n
with ProcessWorker(n=1) as w:
    print(w.submit(score, 3).result())
"""


UNGUARDED_ASYNC = """
import asyncio
from mpworker import AsyncProcessWorker
def score(n): return n * n
async def main():
    async with AsyncProcessWorker(n=1) as w:
        print(await w.submit(score, 3))
asyncio.run(main())
"""


@pytest.mark.parametrize("source", [UNGUARDED, UNGUARDED_ASYNC], ids=["plain", "asyncio"])
def test_a_script_without_a_guard_that_is_imported_makes_no_pools_without_end(tmp_path: Path, source: str) -> None:
    programs.write(tmp_path / "unguarded.py", source)
    assert programs.run("unguarded.py", cwd=tmp_path).stdout == "9\n"
    done = programs.run("-c", "import unguarded", cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert "ConfigurationError: module 'unguarded' makes a ProcessWorker when it is imported" in done.stderr


def test_a_preloaded_module_without_a_guard_is_refused(tmp_path: Path) -> None:
    programs.write(tmp_path / "unguarded.py", UNGUARDED)
    source = """
        from mpworker import ProcessWorker
        with ProcessWorker(n=1, preload=["unguarded"]) as w:
            w.submit(abs, 1).result()
        """
    done = programs.run_source(source, tmp_path, check=False)
    assert "module 'unguarded' makes a ProcessWorker when it is imported" in done.stderr.splitlines()[-1]


def test_an_initializer_and_a_task_may_make_pools(tmp_path: Path) -> None:
    programs.run_source(
        """
        from mpworker import ProcessWorker
        def pool():
            with ProcessWorker(n=1) as w:
                assert w.submit(abs, -3).result() == 3
        with ProcessWorker(n=1, initializer=pool) as w:
            w.submit(pool).result()
            list(w.map(lambda _: pool(), range(2)))
        """,
        tmp_path,
    )
