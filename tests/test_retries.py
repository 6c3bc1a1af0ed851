"""When a task that failed is tried again: its pauses, and the exceptions that end it at once."""

import itertools
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import leaks
import pytest
import retry_tasks as tasks
from hypothesis import given
from hypothesis import strategies as st

from mpworker import ProcessWorker, RetryPolicy, Task, optiontable
from mpworker.errors import (
    ConfigurationError,
    InvalidArgument,
    MPWorkerError,
    Retry,
    SerializationError,
    TaskCancelled,
    WorkerCrashed,
)
from mpworker.supervisor.backoff import Backoff

LIMIT = 60.0  # seconds: a guard against a hang
LONG = RetryPolicy(base=1e6, cap=1e6, jitter="none")


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessWorker]:
    with ProcessWorker(n=2) as w:
        yield w


# ------------------------------------------------------------ pauses


def test_pauses_grow_up_to_the_cap() -> None:
    backoff = Backoff(0.5, 3.0, 10.0, "none")
    assert [backoff.pause(attempts, 0.7) for attempts in range(1, 6)] == [0.5, 1.5, 4.5, 10.0, 10.0]


@given(
    base=st.floats(0, 1e9),
    factor=st.floats(1, 1e6),
    cap=st.floats(0, 1e9),
    attempts=st.integers(1, 1_000_000),
    uniform=st.floats(0, 1),
)
def test_jitter_only_shortens(base: float, factor: float, cap: float, attempts: int, uniform: float) -> None:
    longest = Backoff(base, factor, cap, "none").pause(attempts, uniform)
    assert longest <= cap
    assert 0 <= Backoff(base, factor, cap, "full").pause(attempts, uniform) == longest * uniform <= longest
    assert longest / 2 <= Backoff(base, factor, cap, "equal").pause(attempts, uniform) <= longest


def test_a_task_pauses_before_each_further_attempt(pool: ProcessWorker, tmp_path: Path) -> None:
    view = pool.options(retries=3, retry_policy=RetryPolicy(base=0.05, jitter="none"))
    assert view.submit(tasks.fail_until, tmp_path / "times", 4).result(LIMIT) == 4
    times = tasks.times(tmp_path / "times")
    for attempt, (one, next_) in enumerate(itertools.pairwise(times), start=1):
        assert next_ - one >= 0.05 * 2 ** (attempt - 1)


def test_what_waits_for_its_next_attempt_holds_no_child_and_no_other_item(tmp_path: Path) -> None:
    with ProcessWorker(n=1) as w:
        view = w.options(retries=1, retry_policy=LONG)
        waiting = view.submit(tasks.fail_until, tmp_path / "one", 2)
        assert w.submit(len, "four").result(LIMIT) == 4
        results = view.map(tasks.fail_third_once, [(tmp_path / "item", number) for number in range(5)], chunksize=5)
        assert [next(results), next(results)] == [0, 1]
        assert w.submit(len, "four").result(LIMIT) == 4
        assert len(tasks.times(tmp_path / "one")) == len(tasks.times(tmp_path / "item")) == 1
        results.close()  # type: ignore[attr-defined]
        assert waiting.cancel()
        assert not waiting.running()
        with pytest.raises(TaskCancelled):
            waiting.result(LIMIT)


def test_a_stop_that_cancels_ends_what_waits_for_its_next_attempt(tmp_path: Path) -> None:
    with ProcessWorker(n=1, retries=1, retry_policy=LONG) as w:
        waiting = w.submit(tasks.fail_until, tmp_path / "one", 2)
        assert w.options(retries=0).submit(len, "four").result(LIMIT) == 4
        w.shutdown(cancel_futures=True)
        assert waiting.cancelled()


def test_a_drain_waits_for_the_next_attempt(tmp_path: Path) -> None:
    policy = RetryPolicy(base=0.2, jitter="none")
    with ProcessWorker(n=1, retries=1, retry_policy=policy) as w:
        waiting = w.submit(tasks.fail_until, tmp_path / "one", 2)
        assert w.stop_graceful(LIMIT)
        assert waiting.result(0) == 2


def test_a_death_of_the_child_is_followed_by_a_pause_too(tmp_path: Path) -> None:
    policy = RetryPolicy(base=0.2, jitter="none", give_up_on=(Exception,))
    with ProcessWorker(n=1, crash_retries=1, retry_policy=policy) as w:
        assert w.submit(tasks.die_until, tmp_path / "times", 2).result(LIMIT) == 2
        one, other = tasks.times(tmp_path / "times")
        assert other - one >= 0.2
        assert isinstance(w.submit(tasks.die_until, tmp_path / "more", 3).exception(LIMIT), WorkerCrashed)


# ------------------------------------------------------------ which exceptions


@pytest.mark.parametrize(
    ("policy", "attempts"),
    [
        (RetryPolicy(), 4),
        (RetryPolicy(retry_on=(tasks.Transient,)), 4),
        (RetryPolicy(retry_on=tasks.Transient), 4),  # type: ignore[arg-type]  # one class will do, as for `except`
        (RetryPolicy(retry_on=(LookupError, ConnectionError)), 4),
        (RetryPolicy(retry_on=(LookupError,)), 1),
        (RetryPolicy(retry_on=()), 1),
        (RetryPolicy(give_up_on=(tasks.Transient,)), 1),
        (RetryPolicy(give_up_on=(OSError,)), 1),
        (RetryPolicy(give_up_on=(LookupError,)), 4),
        (RetryPolicy(retry_on=(OSError,), give_up_on=(tasks.Transient,)), 1),
    ],
)
def test_the_exceptions_of_a_policy(pool: ProcessWorker, tmp_path: Path, policy: RetryPolicy, attempts: int) -> None:
    view = pool.options(retries=3, retry_policy=policy)
    assert isinstance(view.submit(tasks.fail_until, tmp_path / "task", 9).exception(LIMIT), tasks.Transient)
    assert len(tasks.times(tmp_path / "task")) == attempts
    items = [(tmp_path / "item", number) for number in range(5)]
    results = list(view.map(tasks.fail_third_always, items, chunksize=5, return_exceptions=True))
    assert isinstance(results.pop(2), tasks.Transient)
    assert results == [0, 1, 3, 4]
    assert len(tasks.times(tmp_path / "item")) == attempts


def test_an_exception_of_a_script_is_known_in_the_child(pool: ProcessWorker, tmp_path: Path) -> None:
    class Mine(Exception):
        pass

    Mine.__module__ = "__main__"

    def fail(path: Path) -> None:
        tasks.note(path)
        raise Mine

    view = pool.options(retries=3, retry_policy=RetryPolicy(give_up_on=(Mine,)))
    assert isinstance(view.submit(fail, tmp_path / "one").exception(LIMIT), Mine)
    assert len(tasks.times(tmp_path / "one")) == 1


def test_a_timeout_counts_whatever_the_policy_says_of_exceptions(pool: ProcessWorker, tmp_path: Path) -> None:
    view = pool.options(timeout=0.2, retries=1, retry_policy=RetryPolicy(retry_on=()))
    assert view.submit(tasks.sleep_at_first, tmp_path / "times").result(LIMIT) == 2


# ------------------------------------------------------------ asked for


def test_a_task_may_ask_to_be_tried_again(pool: ProcessWorker, tmp_path: Path) -> None:
    # In seconds of its own, whatever its policy says; one that gives up on everything does not give up on this.
    view = pool.options(retries=2, retry_policy=RetryPolicy(base=1e6, cap=1e6, give_up_on=(Exception,)))
    assert view.submit(tasks.ask_until, tmp_path / "task", 3, 0.1).result(LIMIT) == 3
    one, two, three = tasks.times(tmp_path / "task")
    assert min(two - one, three - two) >= 0.1
    items = [(tmp_path / "item", number) for number in range(5)]
    assert list(view.map(tasks.ask_at_third, items, chunksize=5)) == [0, 1, 2, 3, 4]
    one, two = tasks.times(tmp_path / "item")
    assert two - one >= 0.1


def test_without_seconds_the_pause_is_that_of_the_policy(pool: ProcessWorker, tmp_path: Path) -> None:
    view = pool.options(retries=1, retry_policy=RetryPolicy(base=0.1, jitter="none"))
    assert view.submit(tasks.ask_until, tmp_path / "task", 2, None).result(LIMIT) == 2
    one, two = tasks.times(tmp_path / "task")
    assert two - one >= 0.1


def test_a_task_that_asks_too_often_raises_it(pool: ProcessWorker, tmp_path: Path) -> None:
    error = pool.options(retries=1).submit(tasks.ask_until, tmp_path / "task", 9, 0.01).exception(LIMIT)
    assert isinstance(error, Retry)
    assert isinstance(error, MPWorkerError)
    assert error.after == 0.01
    assert len(tasks.times(tmp_path / "task")) == 2


# ------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("arguments", "kind", "says"),
    [
        ({"base": -1}, ConfigurationError, "base must be at least 0 s, not -1"),
        ({"base": "1"}, InvalidArgument, "base must be a number of seconds, not '1'"),
        ({"cap": 1e10}, ConfigurationError, "cap must be at most 1000000000 s, not 10000000000.0"),
        ({"factor": 0.5}, ConfigurationError, "factor must be at least 1, not 0.5"),
        ({"factor": 1e7}, ConfigurationError, "factor must be at most 1e+06, not 10000000.0"),
        ({"factor": None}, InvalidArgument, "factor must be a number from 1 to 1e+06, not None"),
        ({"factor": float("nan")}, InvalidArgument, "factor must be a number from 1 to 1e+06, not nan"),
        ({"jitter": "some"}, ConfigurationError, "jitter must be one of 'full', 'equal', 'none', not 'some'"),
        ({"retry_on": 3}, InvalidArgument, "retry_on must be a tuple of exception classes, not 3"),
        (
            {"give_up_on": (int,)},
            InvalidArgument,
            "give_up_on must be a tuple of exception classes, not (<class 'int'>,)",
        ),
    ],
)
def test_a_bad_policy_is_told_where_it_is_made(arguments: dict[str, Any], kind: type[Exception], says: str) -> None:
    with pytest.raises(kind) as told:
        RetryPolicy(**arguments)
    assert str(told.value) == says


def test_an_exception_that_cannot_be_sent(pool: ProcessWorker) -> None:
    kind = type("Locked", (Exception,), {"__module__": "__main__", "lock": threading.Lock()})
    with pytest.raises(
        SerializationError, match=r"an exception of the retry_policy cannot be pickled: TypeError: .*lock"
    ):
        pool.options(retries=1, retry_policy=RetryPolicy(retry_on=(kind,)))
    before = leaks.snapshot()
    with pytest.raises(SerializationError, match=r"of the retry_policy") as told:
        ProcessWorker(n=1, retry_policy=RetryPolicy(retry_on=(kind,)))
    assert not leaks.leaks_since(before), "while somebody holds the error, and with it its frames"
    del told


def test_what_is_no_policy(pool: ProcessWorker) -> None:
    with pytest.raises(InvalidArgument, match=r"retry_policy must be a RetryPolicy or None, not 5"):
        pool.options(retry_policy=5)  # type: ignore[typeddict-item]
    with pytest.raises(ConfigurationError, match=r"after must be at least 0 s, not -1"):
        Retry(after=-1)
    assert RetryPolicy(base=1).base.hex() == "0x1.0000000000000p+0", "a plain float"


def test_equal_policies_are_one_for_the_children_however_many_option_sets_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(optiontable, "OPTIONS_MAX", 2)
    with ProcessWorker(n=1) as w:
        before = len(w._client.functions.live)
        for number in range(20):
            policy = RetryPolicy(base=0.0, cap=1.0 + number, give_up_on=(ValueError,))
            future = w.register_task(Task(int, ("x",), retries=3, retry_policy=policy))
            with pytest.raises(ValueError, match="invalid literal"):
                future.result(60.0)
        other = w.options(retries=1, retry_policy=RetryPolicy(give_up_on=(KeyError,)))
        assert other.submit(abs, -1).result() == 1
        assert len(w._client.functions.live) <= before + 4, "int, abs and two judges"
