"""Functions travel once when nobody can tell, and else each time: a task sees what its caller saw at the submit."""

import inspect
import math
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pooljobs
import programs
import pytest
from pooljobs import Gate

from mpworker import ProcessWorker, functions
from mpworker.functions import _CACHED_MAX


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessWorker]:
    with ProcessWorker(n=1) as worker:  # one child, which would remember
        yield worker


@pytest.fixture
def sent(pool: ProcessWorker, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The keys of the functions that are sent from now on."""
    keys: list[int] = []
    table = pool._client.functions
    send = table._send

    def count(key: int, name: str, blob: bytes) -> None:
        keys.append(key)
        send(key, name, blob)

    monkeypatch.setattr(table, "_send", count)
    return keys


def define(source: str) -> dict[str, Any]:
    """What a script or a cell defines: functions of a module that no child can import."""
    namespace: dict[str, Any] = {"__name__": "a_notebook"}
    exec(dedent(source), namespace)
    return namespace


# ------------------------------------------------------------ what changes is seen

# name: what is defined, then each change and what f() is after it.
CHANGES: dict[str, tuple[str, list[tuple[str, object]]]] = {
    "a global": ("x = 1\ndef f(): return x", [("x = 2", 2), ("x = 2000", 2000), ("x = (3,)", (3,))]),
    "a global that appears": (
        """
        def f():
            try:
                return x
            except NameError:
                return "none"
        """,
        [("", "none"), ("x = 1", 1), ("del x", "none")],
    ),
    "an equal value of another type": ("x = 1\ndef f(): return repr(x)", [("x = True", "True"), ("x = 1.0", "1.0")]),
    "a shadowed builtin": ("def f(): return len('ab')", [("len = lambda _: 'mine'", "mine"), ("del len", 2)]),
    "a helper": ("def g(): return 1\ndef f(): return g()", [("def g(): return 2", 2), ("g = lambda: 3", 3)]),
    "a helper's helper": (
        "def h(): return 1\ndef g(): return h()\ndef f(): return g()",
        [("def h(): return 2", 2), ("g = lambda: h() + 10", 12)],
    ),
    "a helper's code": (
        "def g(): return 1\ndef other(): return 2\ndef f(): return g()",
        [("g.__code__ = other.__code__", 2)],
    ),
    "a helper's default": ("def g(n=1): return n\ndef f(): return g()", [("g.__defaults__ = (2,)", 2)]),
    "a global of a lambda inside": ("x = 1\ndef f(): return (lambda: x)()", [("x = 2", 2)]),
    "a global in a comprehension": ("x = 1\ndef f(): return [x for _ in 'ab']", [("x = 2", [2, 2])]),
    "the code": ("def f(): return 1\ndef g(): return 2", [("f.__code__ = g.__code__", 2)]),
    "a default": ("def f(n=1): return n", [("f.__defaults__ = (2,)", 2)]),
    "a keyword's default": ("def f(*, n=1): return n", [("f.__kwdefaults__ = {'n': 2}", 2)]),
    "a keyword's first default": (
        "def f(*n, **k): return k or n\ndef g(*, n): return n",
        [("f = g; f.__kwdefaults__ = {'n': 2}", 2), ("f.__kwdefaults__ = {'n': 3}", 3)],
    ),
    "a default that is changed in place": ("def f(n=[1]): return n", [("f.__defaults__[0].append(2)", [1, 2])]),
    "a list": ("x = [1]\ndef f(): return x", [("x.append(2)", [1, 2]), ("x.clear()", [])]),
    "a list in a tuple": ("x = ([1],)\ndef f(): return x[0]", [("x[0].append(2)", [1, 2])]),
    "a dictionary in a closure": (
        "d = {}\ndef make(d):\n    return lambda: d\nf = make(d)",
        [("d['k'] = 1", {"k": 1}), ("d['k'] = 2", {"k": 2})],
    ),
    "a closure's variable": (
        """
        def make():
            n = 1
            def f():
                return n
            def change(value):
                nonlocal n
                n = value
            return f, change
        f, change = make()
        """,
        [("change(2)", 2), ("change('two')", "two")],
    ),
    "an attribute of the function": (
        "def f(): return getattr(f, 'n', 0)",
        [("f.n = 1", 1), ("f.n = 2", 2), ("del f.n", 0)],
    ),
    "an attribute of a helper": (
        "def g(): pass\ndef f(): return getattr(g, 'n', 0)",
        [("g.n = 1", 1), ("g.n = 2", 2)],
    ),
    "an attribute of an instance": (
        "import types\nx = types.SimpleNamespace(n=1)\ndef f(): return x.n",
        [("x.n = 2", 2)],
    ),
    "an attribute of a class": ("class C:\n    n = 1\ndef f(): return C.n", [("C.n = 2", 2), ("C.n = 3", 3)]),
    "a class": (
        "class C:\n    def m(self): return 1\ndef f(): return C().m()",
        [("class C:\n    def m(self): return 2", 2)],
    ),
    "a method": (
        "class C:\n    def m(self): return 1\ndef f(): return C().m()",
        [("C.m = lambda self: 2", 2)],
    ),
    "a module": ("import math as m\ndef f(): return m.__name__", [("import cmath as m", "cmath")]),
    "an imported function": (
        "from math import floor as r\ndef f(): return r(1.5)",
        [("from math import ceil as r", 2), ("from pooljobs import square as r", 2.25)],
    ),
    "the function itself": ("def f(): return 1", [("def f(): return 2", 2), ("f = lambda: 3", 3)]),
    "itself, recursive": (
        "step = 1\ndef f(n=3): return 0 if n == 0 else step + f(n - 1)",
        [("step = 2", 6), ("f = (lambda old: lambda: old(0) + 1)(f)", 1)],
    ),
    "a partial": (
        "from functools import partial\nx = [1]\nf = partial(lambda x: x, x)",
        [("x.append(2)", [1, 2])],
    ),
    "a bound method": (
        "class C:\n    n = 1\n    def m(self): return self.n\nc = C()\nf = c.m",
        [("c.n = 2", 2), ("C.n = 5; del c.n", 5)],
    ),
    "a callable object": (
        "class C:\n    n = 1\n    def __call__(self): return self.n\nf = C()",
        [("f.n = 2", 2)],
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_was_changed_is_seen(pool: ProcessWorker, name: str) -> None:
    source, changes = CHANGES[name]
    space = define(source)
    for _ in range(2):
        assert pool.submit(space["f"]).result() == space["f"]()
    for change, expected in changes:
        exec(dedent(change), space)
        assert space["f"]() == expected
        assert [pool.submit(space["f"]).result() for _ in range(2)] == [space["f"]()] * 2
        assert list(pool.map(lambda _, f: f(), range(2), [space["f"]] * 2)) == [space["f"]()] * 2


def test_a_keywords_default_that_is_given_after_the_function_was_sent(pool: ProcessWorker) -> None:
    f = define("def f(*, n): return n")["f"]
    assert pool.submit(f, n=1).result() == 1
    f.__kwdefaults__ = {"n": 2}
    assert pool.submit(f).result() == 2


def test_a_change_after_the_submit_is_not_seen(pool: ProcessWorker, tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    held = pool.submit(pooljobs.hold, gate.folder)
    gate.wait_begun()
    for source, change in (("x = 1\ndef f(): return x", "x = 2"), ("x = [1]\ndef f(): return x[0]", "x[0] = 2")):
        space = define(source)
        before = [pool.submit(space["f"]) for _ in range(2)]
        exec(change, space)
        after = [pool.submit(space["f"]) for _ in range(2)]
        gate.release()
        assert [future.result() for future in (*before, *after)] == [1, 1, 2, 2]
        held = pool.submit(pooljobs.hold, gate.folder)
        gate.wait_begun()
    gate.release()
    held.result()
    gate.close()


# ------------------------------------------------------------ what a task writes is gone

# Each returns the same at every call of a fresh copy, and something else at the second call of one that was kept.
WRITES = {
    "a global": "n = 0\ndef f():\n    global n\n    n += 1\n    return n",
    "a new global": "def f():\n    global n\n    was = 'n' in f.__globals__\n    n = 1\n    return was",
    "a global that is deleted": "n = 1\ndef f():\n    global n\n    was = n\n    del n\n    return was",
    "a global by a loop": "i = 0\ndef f():\n    global i\n    was = i\n    for i in range(3): pass\n    return was",
    "a global by an import": (
        "json = None\ndef f():\n    global json\n    was = json\n    import json\n    return was is None"
    ),
    "a global of a function inside": (
        "n = 0\ndef f():\n    def g():\n        global n\n        n += 1\n        return n\n    return g()"
    ),
    "a global of a helper": "n = 0\ndef g():\n    global n\n    n += 1\n    return n\ndef f(): return g()",
    "a list": "x = []\ndef f():\n    x.append(1)\n    return len(x)",
    "a dictionary": "x = {}\ndef f():\n    x['n'] = x.get('n', 0) + 1\n    return x['n']",
    "a default": "def f(x=[]):\n    x.append(1)\n    return len(x)",
    "a default of a keyword": "def f(*, x=[]):\n    x.append(1)\n    return len(x)",
    "a closure's variable": (
        "def make():\n    n = 0\n    def f():\n        nonlocal n\n        n += 1\n        return n\n"
        "    return f\nf = make()"
    ),
    "a closure's variable, further in": (
        "def make():\n    n = 0\n    def f():\n        def g():\n            nonlocal n\n            n += 1\n"
        "            return n\n        return g()\n    return f\nf = make()"
    ),
    "a closure's list": "def make(x):\n    return lambda: x.append(1) or len(x)\nf = make([])",
    "an attribute": "def f():\n    f.n = getattr(f, 'n', 0) + 1\n    return f.n",
    "an attribute of a helper": "def g(): pass\ndef f():\n    g.n = getattr(g, 'n', 0) + 1\n    return g.n",
    "an attribute by setattr": "def f():\n    setattr(f, 'n', getattr(f, 'n', 0) + 1)\n    return f.n",
    "an attribute by vars": "def f():\n    vars(f)['n'] = vars(f).get('n', 0) + 1\n    return f.n",
    "an attribute by getattr": (
        "def f():\n    d = getattr(f, '__dict__')\n    d['n'] = d.get('n', 0) + 1\n    return d['n']"
    ),
    "an attribute of a class": "class C:\n    n = 0\ndef f():\n    C.n += 1\n    return C.n",
    "globals()": "def f():\n    g = globals()\n    g['n'] = g.get('n', 0) + 1\n    return g['n']",
    "__globals__": "def f():\n    g = f.__globals__\n    g['n'] = g.get('n', 0) + 1\n    return g['n']",
    "__globals__ by attrgetter": (
        "from operator import attrgetter\ndef f():\n    g = attrgetter('__globals__')(f)\n"
        "    g['n'] = g.get('n', 0) + 1\n    return g['n']"
    ),
    "the frame's globals": (
        "import sys\ndef f():\n    g = sys._getframe().f_globals\n    g['n'] = g.get('n', 0) + 1\n    return g['n']"
    ),
    "the globals of a traceback's frame": (
        "def f():\n    try:\n        1 / 0\n    except ZeroDivisionError as error:\n"
        "        g = error.__traceback__.tb_frame.f_globals\n    g['n'] = g.get('n', 0) + 1\n    return g['n']"
    ),
    "the annotations": ("def f():\n    a = f.__annotations__\n    a['n'] = a.get('n', 0) + 1\n    return a['n']"),
    "exec": "n = 0\ndef f():\n    exec('global n; n += 1')\n    return n",
    "an iterator": "x = iter([1, 2, 3])\ndef f(): return next(x)",
    "a cache": (
        "from functools import lru_cache\n@lru_cache\ndef g(): pass\ndef f():\n    g()\n    return g.cache_info().hits"
    ),
    "the cache of a method": (
        "from functools import cache\nclass C:\n    @cache\n    def m(self): return 1\nc = C()\n"
        "def f():\n    c.m()\n    return C.m.cache_info().hits"
    ),
    "a cached property": (
        "from functools import cached_property\nclass C:\n    @cached_property\n    def p(self): return 1\nc = C()\n"
        "def f():\n    was = 'p' in vars(c)\n    c.p\n    return was"
    ),
    "the partial's list": "from functools import partial\nf = partial(lambda x: x.append(1) or len(x), [])",
    "the instance of a method": (
        "class C:\n    n = 0\n    def m(self):\n        self.n += 1\n        return self.n\nf = C().m"
    ),
}


@pytest.mark.parametrize("name", WRITES)
def test_what_a_task_writes_is_gone_with_it(pool: ProcessWorker, name: str) -> None:
    space, other = define(WRITES[name]), define(WRITES[name])
    first = other["f"]()
    if "deleted" not in name:  # there the second call of one copy raises
        assert other["f"]() != first, "the case shows nothing"
    assert [pool.submit(space["f"]).result() for _ in range(3)] == [first] * 3


def test_a_map_has_one_copy_of_its_function_per_child(pool: ProcessWorker) -> None:
    # It is sent once per map, not per item: what it writes is seen by later items of the same map in the same child, as
    # within a chunk of the library's map, and by nobody else.
    count = define("n = 0\ndef f(_):\n    global n\n    n += 1\n    return n")["f"]
    assert list(pool.map(count, range(5))) == [1, 2, 3, 4, 5]
    assert list(pool.map(count, range(5))) == [1, 2, 3, 4, 5]
    assert pool.submit(count, 0).result() == 1


# ------------------------------------------------------------ sent once

ONCE: dict[str, str] = {
    "constants": "def f(): return 1",
    "a lambda": "f = lambda: 'x'",
    "immutable globals": "x = (1, 'two', 3.0, None, frozenset([b'4']))\ndef f(): return x",
    "a module": "import math\ndef f(): return math.pi",
    "an imported function": "from pooljobs import square\ndef f(): return square(3)",
    "a class of the library": "from collections import OrderedDict\ndef f(): return OrderedDict(a=1)",
    "a helper": "def g(n): return n + 1\ndef f(): return g(1)",
    "helpers that call each other": (
        "def even(n): return n == 0 or odd(n - 1)\ndef odd(n): return n != 0 and even(n - 1)\ndef f(): return even(8)"
    ),
    "a closure": "def make(n):\n    return lambda: n\nf = make(5)",
    "a default": "def f(n=(1, 2)): return n",
    "local state": "def f():\n    found = []\n    for n in range(3):\n        found.append(n)\n    return found",
    "an inner closure": (
        "def f():\n    n = 0\n    def g():\n        nonlocal n\n        n += 1\n        return n\n    return g() + g()"
    ),
}


@pytest.mark.parametrize("name", ONCE)
def test_a_function_whose_copy_nobody_can_tell_is_sent_once(pool: ProcessWorker, sent: list[int], name: str) -> None:
    f = define(ONCE[name])["f"]
    assert [pool.submit(f).result() for _ in range(10)] == [f()] * 10
    assert len(sent) == 1
    assert list(pool.map(lambda _: 0, range(3))) == [0, 0, 0]
    assert len(sent) == 2, "the map's own"


def test_what_can_be_imported_is_sent_once(pool: ProcessWorker, sent: list[int]) -> None:
    for call, expected in ((pooljobs.add, 5), (math.hypot, math.hypot(2, 3)), (divmod, (0, 2))):
        sent.clear()
        assert [pool.submit(call, 2, 3).result() for _ in range(5)] == [expected] * 5
        assert list(pool.map(call, [2], [3])) == [expected]
        assert len(sent) <= 1, "none if another test was the first"


def test_a_function_that_cannot_be_sent_once_leaves_nothing(pool: ProcessWorker, sent: list[int]) -> None:
    f = define(WRITES["a list"])["f"]
    for _ in range(5):
        pool.submit(f).result()
    assert sent == []


def test_a_change_sends_it_once_more(pool: ProcessWorker, sent: list[int]) -> None:
    space = define("x = 1\ndef f(): return x")
    for value in (1, 2, 3):
        space["x"] = value
        assert [pool.submit(space["f"]).result() for _ in range(4)] == [value] * 4
    assert len(sent) == 3


def test_many_functions_that_come_and_go(pool: ProcessWorker) -> None:
    # The address of a dead function is soon another one's; and the table is bounded.
    futures = [pool.submit(_constant(number)) for number in range(3 * _CACHED_MAX)]
    assert [future.result() for future in futures] == list(range(3 * _CACHED_MAX))
    table = pool._client.functions
    assert len(table.entries) <= _CACHED_MAX
    assert len(table.live) <= _CACHED_MAX + 1


def _constant(number: int) -> Callable[[], int]:
    code = compile(f"lambda: {number}", "<constant>", "eval")
    function = eval(code, {"__name__": "a_notebook"})
    assert isinstance(function, types.FunctionType)
    return function


def test_a_function_is_sent_while_somebody_imports_cloudpickle(
    pool: ProcessWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cloudpickle.cloudpickle", types.ModuleType("cloudpickle.cloudpickle"))
    assert pool.submit(math.sqrt, 4).result() == 2


def test_a_function_of_a_module_that_was_replaced_by_hand_goes_by_value(pool: ProcessWorker) -> None:
    # Its name leads to another one, in the client and in the child.
    mine = types.FunctionType((lambda number: ("mine", number)).__code__, {}, "square")
    mine.__module__, mine.__qualname__ = "pooljobs", "square"
    assert pool.submit(mine, 3).result() == ("mine", 3)
    assert pool.submit(pooljobs.square, 3).result() == 9


def test_replaced_children_are_sent_the_functions_again(tmp_path: Path) -> None:
    with ProcessWorker(n=1) as pool:
        f = define("import os\ndef g(): return os.getpid()\ndef f(): return g()")["f"]
        first = pool.submit(f).result()
        crash = pool.submit(define("import os\ndef f(): os._exit(3)")["f"])
        assert crash.exception() is not None
        assert pool.submit(f).result() not in (first, None)


# ------------------------------------------------------------ modules made at run time


def test_a_module_made_at_run_time_cannot_be_imported_in_a_child(tmp_path: Path) -> None:
    # Registered in sys.modules, its functions go by name; cloudpickle has a verb to say that they shall not.
    done = programs.run_source(
        """
        import sys, types
        import cloudpickle
        from mpworker import ProcessWorker
        module = types.ModuleType("made")
        exec("n = 1\\ndef f(): return n", module.__dict__)
        sys.modules["made"] = module
        with ProcessWorker(n=1) as w:
            print(w.submit(module.f).exception())
        cloudpickle.register_pickle_by_value(module)
        with ProcessWorker(n=1) as w:
            print(w.submit(module.f).result())
            module.n = 2
            print(w.submit(module.f).result())
        """,
        tmp_path,
    )
    first, *rest = done.stdout.splitlines()
    assert "No module named 'made'" in first
    assert rest == ["1", "2"]


def test_asynchronous_functions_are_known_by_the_flags_that_python_gives_them() -> None:
    assert inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR == functions._ASYNCHRONOUS
