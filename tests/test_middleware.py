"""Middleware: around submissions, here, and around the execution, in the child."""

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import programs
import pytest
from concurrently import eventually
from pooljobs import wait_for_file

import mpworker
from mpworker import Hooks, ProcessWorker, RetryPolicy, Task, TaskContext, TaskEvent
from mpworker.errors import (
    InvalidArgument,
    QueueFull,
    Retry,
    SerializationError,
    TaskCancelled,
    TaskExited,
    TaskTimeout,
    WorkerStopped,
)

GUARD = 60.0
Next = Callable[[], Any]

trail: list[str] = []  # of the middleware, in the child that runs them


def walked() -> list[str]:
    """What the middleware of this child have done so far."""
    return list(trail)


def outer(call_next: Next, context: TaskContext) -> Any:
    trail.append(f"outer of {context.attempt}")
    try:
        return call_next()
    finally:
        trail.append("outer ends")


def inner(call_next: Next, context: TaskContext) -> Any:
    trail.append("inner")
    return call_next()


def raises_before(call_next: Next, context: TaskContext) -> Any:
    raise LookupError(f"{context.task_id} is secret")


def raises_after(call_next: Next, context: TaskContext) -> Any:
    call_next()
    raise LookupError(context.task_id)


def raises_instead(call_next: Next, context: TaskContext) -> Any:
    try:
        return call_next()
    except Exception as error:
        raise LookupError("another one") from error


def never_calls(call_next: Next, context: TaskContext) -> Any:
    return "not that"


def calls_twice(call_next: Next, context: TaskContext) -> Any:
    return [call_next(), call_next()]


def swallows(call_next: Next, context: TaskContext) -> Any:
    try:
        call_next()
    except BaseException:  # noqa: BLE001, S110
        pass
    return "swallowed"


def exits(call_next: Next, context: TaskContext) -> Any:
    call_next()
    raise SystemExit(3)


def fail(text: str) -> None:
    raise ValueError(text)


def count(path: str) -> int:
    """How often this was called with this path."""
    with open(path, "a+") as file:
        file.write("x")
        file.flush()
        return file.tell()


# ------------------------------------------------------------ around the execution


def test_the_first_middleware_is_the_outermost() -> None:
    with ProcessWorker(n=1, execute_middleware=[outer, inner]) as w:
        w.submit(fail, "x").exception(GUARD)
        assert w.submit(walked).result(GUARD) == ["outer of 1", "inner", "outer ends", "outer of 1", "inner"]


def test_it_is_around_every_kind_of_call() -> None:
    class Callable_:
        def __call__(self, by: int = 1) -> int:
            return 6 * by

    with ProcessWorker(n=1, execute_middleware=[inner]) as w:
        here = [7]
        assert w.submit(lambda: here[0]).result(GUARD) == 7  # goes along with the call
        assert w.submit(Callable_(), by=2).result(GUARD) == 12
        assert w.register_task(Task(len, ("four",), deadline=50.0)).result(GUARD) == 4
        assert w.submit(walked).result(GUARD) == ["inner"] * 4
        assert list(w.map(abs, range(-3, 2))) == [3, 2, 1, 0, 1]
        assert list(w.map(pow, [2, 3], [3, 2])) == [8, 9]
        assert w.submit(walked).result(GUARD) == ["inner"] * 12


def notes(call_next: Next, context: TaskContext) -> Any:
    assert mpworker.current() == context
    trail.append(f"{context.task_id} {context.metadata}")
    return call_next()


def test_it_sees_the_context_of_the_task() -> None:
    with ProcessWorker(n=1, execute_middleware=[notes]) as w:
        future = w.register_task(Task(walked, id="mine", metadata={"case": 1}))
        assert future.result(GUARD) == ["mine {'case': 1}"]
        assert w.metrics().observer_errors["middleware"] == 0


BROKEN = [raises_before, raises_after, raises_instead, never_calls, calls_twice, swallows, exits]


@pytest.mark.parametrize("place", ["inside", "outside", "alone"])
@pytest.mark.parametrize("broken", BROKEN)
def test_no_middleware_changes_what_comes_of_a_task(broken: Callable[..., Any], place: str, tmp_path: Path) -> None:
    layers = {"inside": [outer, broken], "outside": [broken, outer], "alone": [broken]}[place]
    with ProcessWorker(n=1, execute_middleware=layers) as w:
        path = str(tmp_path / "x")
        assert w.submit(count, path).result(GUARD) == 1
        with pytest.raises(ValueError, match="of the task") as caught:
            w.submit(fail, "of the task").result(GUARD)
        assert caught.value.__cause__ is not None
        assert str(caught.value.__cause__).count("File ") == 1  # the traceback is that of the task alone
        assert "in fail" in str(caught.value.__cause__)
        assert list(w.map(count, [path] * 3)) == [2, 3, 4]
        outcomes = list(w.map(fail, ["a", "b"], return_exceptions=True))
        assert [repr(each) for each in outcomes] == ["ValueError('a')", "ValueError('b')"]
        assert w.submit(count, path).result(GUARD) == 5  # once each
        if place != "alone":
            assert "outer of 1" in w.submit(walked).result(GUARD)


FAULTS = {raises_before: 2, raises_after: 1, raises_instead: 1, never_calls: 2, exits: 1, swallows: 0, calls_twice: 0}


@pytest.mark.parametrize("broken", FAULTS)
def test_a_fault_of_a_middleware_is_counted_and_logged(
    broken: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR, "mpworker"), ProcessWorker(n=1, execute_middleware=[broken]) as w:
        good = w.submit(len, "four")
        assert good.result(GUARD) == 4
        w.submit(fail, "x").exception(GUARD)
        assert w.metrics().observer_errors["middleware"] == FAULTS[broken]
        assert w.metrics().failed == 1
        w.submit(len, "four").result(GUARD)
    told = [record.getMessage() for record in caplog.records]
    assert all(message.startswith("middleware_failed task_id=") for message in told)
    assert all(f" middleware={broken.__name__} " in message for message in told)
    assert "secret" not in "".join(message for message in told if "raise LookupError" not in message)
    if broken is raises_before:
        assert told[0].startswith(f"middleware_failed task_id={good.task_id} name=len middleware=raises_before")
        assert told[0].endswith("LookupError")
        assert good.task_id not in told[0].split(" at=")[1]


def test_the_exceptions_of_a_task_count() -> None:
    def ask_again() -> str:
        if mpworker.current().attempt == 1:
            raise Retry(after=0.01)
        return "done"

    with ProcessWorker(n=1, execute_middleware=[outer, inner], retries=1) as w:
        assert w.submit(ask_again).result(GUARD) == "done"
        with pytest.raises(TaskExited):
            w.options(retries=0).submit(os.sys.exit, 3).result(GUARD)  # type: ignore[attr-defined]
        policy = RetryPolicy(give_up_on=(ValueError,))
        with pytest.raises(ValueError, match="at once"):
            w.options(retry_policy=policy).submit(fail, "at once").result(GUARD)
        assert w.metrics().retries == 1
        assert w.metrics().observer_errors["middleware"] == 0
        # Once for each attempt, and not around what judges their exceptions.
        assert w.submit(walked).result(GUARD).count("inner") == 5


@pytest.mark.parametrize("layer", [inner, swallows, raises_instead])
def test_a_task_is_interrupted_inside_of_its_middleware(layer: Callable[..., Any], tmp_path: Path) -> None:
    never = str(tmp_path / "never")
    with ProcessWorker(n=1, execute_middleware=[layer]) as w:
        child = w.submit(os.getpid).result(GUARD)
        with pytest.raises(TaskTimeout) as caught:
            w.options(timeout=0.05).submit(wait_for_file, never).result(GUARD)
        assert "in wait_for_file" in caught.value.stack
        running = w.submit(wait_for_file, never)
        eventually(running.running)
        assert running.cancel()
        with pytest.raises(TaskCancelled):
            running.result(GUARD)
        (item,) = w.options(timeout=0.05).map(wait_for_file, [never], return_exceptions=True)
        assert isinstance(item, TaskTimeout)
        assert w.submit(os.getpid).result(GUARD) == child
        assert w.metrics().observer_errors["middleware"] == 0


@pytest.mark.parametrize("when", ["before", "after"])
def test_the_time_of_a_task_is_also_that_of_its_middleware(when: str, tmp_path: Path) -> None:
    def slow(call_next: Next, context: TaskContext) -> Any:
        if when == "after":
            call_next()
        if context.metadata:
            wait_for_file(context.metadata["never"])
        return call_next()

    with ProcessWorker(n=1, execute_middleware=[swallows, slow, swallows]) as w:
        assert w.submit(len, "four").result(GUARD) == 4
        late = Task(len, ("four",), metadata={"never": str(tmp_path / "never")}, timeout=0.05)
        with pytest.raises(TaskTimeout):
            w.register_task(late).result(GUARD)
        assert w.submit(len, "four").result(GUARD) == 4
        assert w.metrics().observer_errors["middleware"] == 0


def test_the_call_is_made_though_a_middleware_swallows_an_interrupt_of_another_one() -> None:
    def is_interrupted(call_next: Next, context: TaskContext) -> Any:
        raise KeyboardInterrupt

    with ProcessWorker(n=1, execute_middleware=[swallows, is_interrupted]) as w:
        assert w.submit(len, "four").result(GUARD) == 4


def test_an_interrupt_from_outside_is_not_the_fault_of_a_middleware() -> None:
    def is_interrupted(call_next: Next, context: TaskContext) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return call_next()

    with ProcessWorker(n=1, execute_middleware=[is_interrupted]) as w:
        with pytest.raises(TaskExited, match="KeyboardInterrupt"):
            w.submit(len, "four").result(GUARD)
        assert w.metrics().observer_errors["middleware"] == 0


def test_a_middleware_that_cannot_be_sent_is_named() -> None:
    held = threading.Lock()

    def holds(call_next: Next, context: TaskContext) -> Any:
        return held and call_next()

    with pytest.raises(SerializationError, match=r"execute_middleware cannot be pickled.*'held'"):
        ProcessWorker(n=1, execute_middleware=[holds])


_SCRIPT = """
from mpworker import ProcessWorker

level = "unset"


def prepare():
    global level
    level = "prepared"


def layer(call_next, context):
    seen.append(level)
    return call_next()


seen = []


def look():
    return seen


with ProcessWorker(n=1, initializer=prepare, execute_middleware=[layer]) as w:
    assert w.submit(look).result() in (["prepared"], []), w.submit(look).result()
    assert w.metrics().observer_errors["middleware"] == 0
assert seen == []
"""


def test_a_script_has_its_middleware_in_itself(tmp_path: Path) -> None:
    programs.run_source(_SCRIPT, tmp_path)


def test_children_that_follow_have_it_too() -> None:
    with ProcessWorker(n=1, execute_middleware=[inner], max_tasks_per_child=2) as w:
        assert [w.submit(walked).result(GUARD) for _ in range(4)] == [["inner"], ["inner"] * 2] * 2


# ------------------------------------------------------------ around the submission


@contextmanager
def pool(*layers: Callable[..., Any], **options: Any) -> Iterator[ProcessWorker]:
    with ProcessWorker(n=1, submit_middleware=layers, **options) as w:
        yield w


def test_a_submission_goes_through_the_middleware() -> None:
    seen: list[Any] = []

    def first(call_next: Callable[[Task[Any]], Any], task: Task[Any]) -> Any:
        seen.append(("first", task.fn, task.args, dict(task.kwargs), task.queue, task.timeout, task.retries))
        future = call_next(task)
        seen.append("first ends")
        return future

    def second(call_next: Callable[[Task[Any]], Any], task: Task[Any]) -> Any:
        seen.append("second")
        return call_next(replace(task, metadata={"trace": 7}, name="other"))

    with pool(first, second, retries=2) as w:
        future = w.submit(lambda: mpworker.current().metadata)
        assert future.result(GUARD) == {"trace": 7}
        assert w.get_task(future.task_id).name == "other"
        assert seen.pop(0)[1:] != ()
        assert seen == ["second", "first ends"]
        seen.clear()
        assert w.options(queue="mail", timeout=9.0).submit(int, "ff", base=16).result(GUARD) == 255
        assert seen[0] == ("first", int, ("ff",), {"base": 16}, "mail", 9.0, 2)
        seen.clear()
        assert w.execute_task(Task(len, ("four",), id="mine", idempotency_key="k", fingerprint="f")) == 4
        assert w.register_task(Task(len, ("four",), id="mine", idempotency_key="k", fingerprint="f")).task_id == "mine"
        assert len(seen) == 6
        seen.clear()
        assert list(w.map(abs, [-1])) == [1]  # no task is submitted
        assert seen == []


def test_a_middleware_may_refuse_a_submission() -> None:
    def refuse(call_next: Callable[[Task[Any]], Any], task: Task[Any]) -> Any:
        raise PermissionError(task.fn)

    with pool(refuse) as w:
        with pytest.raises(PermissionError):
            w.submit(len, "four")
        assert w.metrics().accepted == 0
        assert w.metrics().observer_errors["middleware"] == 0
        with pytest.raises(InvalidArgument, match=r"submit\(f, x\)"):
            w.submit(3)  # type: ignore[arg-type]


def test_a_middleware_that_fails_afterwards_loses_no_future(caplog: pytest.LogCaptureFixture) -> None:
    def raises(call_next: Callable[[Task[Any]], Any], task: Task[Any]) -> Any:
        call_next(task)
        raise LookupError(repr(task))

    def forgets(call_next: Callable[[Task[Any]], Any], task: Task[Any]) -> Any:
        call_next(task)

    with caplog.at_level(logging.ERROR, "mpworker"), pool(raises, forgets) as w:
        assert w.submit(len, "four").result(GUARD) == 4
        assert w.metrics().observer_errors["middleware"] == 2
    first, second = [record.getMessage() for record in caplog.records]
    assert "forgets" in first
    assert "it returned a NoneType, not the future that call_next returns" in first
    assert second.endswith("LookupError")
    assert "four" not in second


class Unheard(BaseException):
    pass


@pytest.mark.parametrize("kind", [SystemExit, GeneratorExit, KeyboardInterrupt, Unheard])
def test_what_is_no_exception_loses_no_future_either_but_for_an_interrupt(kind: type[BaseException]) -> None:
    def raises(call_next: Callable[[Task[Any]], Any], task: Task[Any]) -> Any:
        call_next(task)
        raise kind

    with pool(raises) as w:
        if kind in (SystemExit, GeneratorExit):
            assert w.submit(len, "four").result(GUARD) == 4
            assert w.register_task(Task(len, ("four",), id="mine")).result(GUARD) == 4
        else:
            with pytest.raises(kind):
                w.register_task(Task(len, ("four",), id="mine"))
        assert w.metrics().observer_errors["middleware"] == (2 if kind in (SystemExit, GeneratorExit) else 0)
        known = w.get_task("mine").future  # it was accepted in any case
        assert known is None or known.result(GUARD) == 4
        assert w.wait(GUARD)
        assert w.metrics().completed >= 1


@pytest.mark.parametrize("kind", [LookupError, SystemExit])
def test_what_is_raised_before_is_raised(kind: type[BaseException]) -> None:
    def raises(call_next: Callable[[Task[Any]], Any], task: Task[Any]) -> Any:
        raise kind

    with pool(raises) as w:
        with pytest.raises(kind):
            w.submit(len, "four")
        assert w.metrics().accepted == 0


def test_a_middleware_must_return_a_future() -> None:
    def no_future(call_next: Callable[[Task[Any]], Any], task: Task[Any]) -> Any:
        return 4

    with pool(no_future) as w, pytest.raises(InvalidArgument, match=r"no_future'.*returned a int"):
        w.submit(len, "four")


def test_a_middleware_hands_on_a_task() -> None:
    def wrong(call_next: Callable[[Any], Any], task: Task[Any]) -> Any:
        return call_next(task.fn)

    with pool(wrong) as w, pytest.raises(InvalidArgument, match="call_next needs a Task, not a builtin"):
        w.submit(len, "four")


def test_a_middleware_may_answer_by_itself() -> None:
    def known(call_next: Callable[[Task[Any]], Any], task: Task[Any]) -> Any:
        future: Future[int] = Future()
        future.set_result(44)
        return future

    with pool(known) as w:
        assert w.submit(len, "four").result(GUARD) == 44
        assert w.metrics().accepted == 0


def test_what_a_submission_raises_goes_through_the_middleware(tmp_path: Path) -> None:
    def once_more(call_next: Callable[[Task[Any]], Any], task: Task[Any]) -> Any:
        try:
            return call_next(task)
        except QueueFull:
            (tmp_path / "go").touch()
            w.wait(GUARD)
            return call_next(task)

    with pool(once_more, max_pending=1, submit_timeout=0) as w:
        assert w.submit(wait_for_file, str(tmp_path / "go")).cancelled() is False
        assert w.submit(len, "four").result(GUARD) == 4
    with pytest.raises(WorkerStopped):
        w.submit(len, "four")


def test_a_worker_with_middleware_ends_when_it_is_dropped() -> None:
    def layer(call_next: Callable[[Task[Any]], Any], task: Task[Any]) -> Any:
        return call_next(task)

    w = ProcessWorker(n=1, submit_middleware=[layer])
    assert w.submit(len, "four").result(GUARD) == 4
    client = w._client
    del w  # by its count of references, and not by some later look for cycles
    assert client.ending.asked
    eventually(lambda: client.is_over() or client.poll())


def test_hooks_and_middleware_see_the_same_task() -> None:
    names: list[str] = []

    def rename(call_next: Callable[[Task[Any]], Any], task: Task[Any]) -> Any:
        return call_next(replace(task, name="renamed"))

    def note(event: TaskEvent) -> None:
        names.append(event.name)

    with pool(rename, hooks=Hooks(on_start=note)) as w:
        w.submit(len, "four").result(GUARD)
    assert names == ["renamed"]
