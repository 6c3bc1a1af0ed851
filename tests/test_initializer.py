"""What an initializer of a script leaves for the tasks."""

from pathlib import Path

import programs

_SCRIPT = """
import functools
from mpworker import ProcessWorker

connection = None
untouched = "the client's"


def connect(name, *, port):
    global connection, cache
    connection = (name, port)
    cache = []


def use(item):
    cache.append(item)
    return connection, list(cache), untouched


class Caller:
    def __call__(self):
        return connection


with ProcessWorker(n=1, initializer=functools.partial(connect, port=1), initargs=("db",)) as w:
    assert w.submit(use, 1).result() == (("db", 1), [1], "the client's")
    assert list(w.map(use, [2])) == [(("db", 1), [1, 2], "the client's")]  # one object, as in one process
    assert w.submit(Caller()).result() == ("db", 1)
    untouched = "changed"
    assert w.submit(use, 3).result()[2] == "changed"  # what the initializer left alone follows the client
    assert w.submit(lambda: connection).result() == ("db", 1)
assert connection is None
"""


def test_tasks_see_the_globals_that_the_initializer_has_set(tmp_path: Path) -> None:
    programs.run_source(_SCRIPT, tmp_path)
