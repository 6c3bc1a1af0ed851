"""Tracebacks as text: by a module that is imported when the first one is written, and without it where it cannot be."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType, ModuleType

import programs
import pytest

from mpworker.ipc import ownpath, tracebacks


def raised(fail: Callable[[], object]) -> BaseException:
    try:
        fail()
    except BaseException as error:  # noqa: BLE001
        return error
    raise AssertionError


def frame_of_now() -> FrameType:
    return sys._getframe()


def test_it_is_the_text_that_python_prints() -> None:
    error = raised(lambda: {}["missing"])
    text = tracebacks.of_exception(error)
    assert text.startswith("Traceback (most recent call last):\n")
    assert 'error = raised(lambda: {}["missing"])' in text
    assert text.endswith("KeyError: 'missing'\n")
    assert tracebacks.of_trace(error.__traceback__) in text
    stack = tracebacks.of_stack([(frame := frame_of_now(), frame.f_lineno)])
    assert stack.endswith(", in frame_of_now\n    return sys._getframe()\n")


@pytest.fixture(params=["no file can be opened", "it is imported half way"])
def without_module(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a child whose task has opened all that it may, and below a handler on top of the import."""

    def imported(_: str) -> ModuleType:
        if request.param == "it is imported half way":
            return ModuleType("traceback")
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(ownpath, "imported", imported)


@pytest.mark.usefixtures("without_module")
def test_without_the_module_frames_and_message_remain() -> None:
    error = raised(lambda: {}["missing"])
    text = tracebacks.of_exception(error)
    head, *places, last = text.splitlines()
    assert (head, last) == ("Traceback (most recent call last):", "KeyError: 'missing'")
    assert places == tracebacks.of_trace(error.__traceback__).splitlines()
    assert [place.rpartition(", in ")[2] for place in places] == ["raised", "<lambda>"]
    assert all(place.startswith(f'  File "{__file__}", line ') for place in places)
    assert tracebacks.of_stack([(frame_of_now(), 7)]) == f'  File "{__file__}", line 7, in frame_of_now\n'


def test_a_child_without_descriptors_tells_where_its_first_exception_was_raised(tmp_path: Path) -> None:
    done = programs.run_source(
        """
        import os
        from mpworker import ProcessWorker
        def leak():
            while True:
                os.open("/", os.O_RDONLY)
        with ProcessWorker(n=1) as pool:
            error = pool.submit(leak).exception()
            print(type(error).__name__, ", in leak" in str(error.__cause__), error.errno)
        """,
        tmp_path,
    )
    assert done.stdout == "OSError True 24\n"


def test_a_late_import_leaves_the_path_of_other_threads_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, users = tmp_path / "ours", tmp_path / "users"
    for folder in (ours, users):
        folder.mkdir()
        (folder / "mpworker_needed_late.py").write_text(f"whose = {folder.name!r}\n")
        (folder / "mpworker_of_both.py").write_text(f"whose = {folder.name!r}\n")
    (ours / "mpworker_late.py").write_text(
        "import threading\n"
        "import mpworker_needed_late\n"
        "def other():\n"
        "    import mpworker_of_both\n"
        "thread = threading.Thread(target=other)\n"
        "thread.start()\n"
        "thread.join()\n"
    )
    monkeypatch.syspath_prepend(users)
    monkeypatch.setattr(ownpath, "_own", None)
    finders = sys.meta_path[:]
    ownpath.keep([str(ours)])
    try:
        ownpath.imported("mpworker_late")
        assert sys.modules["mpworker_needed_late"].whose == "ours"
        assert sys.modules["mpworker_of_both"].whose == "users"
        assert sys.meta_path == finders
    finally:
        for name in ("mpworker_late", "mpworker_needed_late", "mpworker_of_both"):
            sys.modules.pop(name, None)
