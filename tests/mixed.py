"""Everything that a client can do, in a random order, each answer checked."""

import random
from concurrent.futures import FIRST_COMPLETED, as_completed, wait
from typing import Any

import campaign_tasks as tasks
import pytest
from concurrently import GUARD, a_function, eventually

from mpworker import ProcessWorker
from mpworker.errors import TaskCancelled


class Mixed:
    """One thread's share of everything that a client can do, each answer checked."""

    def __init__(self, pool: ProcessWorker, seed: int, rounds: int) -> None:
        self.pool, self.rng, self.rounds = pool, random.Random(seed), rounds
        self.called: list[int] = []
        self.expected_calls = 0

    def __call__(self) -> None:
        for _ in range(self.rounds):
            self.one()
        eventually(lambda: len(self.called) >= self.expected_calls)
        assert len(self.called) == self.expected_calls, "a callback for each, once"

    def one(self) -> None:
        """Do one thing."""
        verbs = [self.result, self.wait, self.as_completed, self.map, self.cancel, self.callback, self.poll, self.new]
        self.rng.choice(verbs)()

    def some(self) -> dict[Any, int]:
        values = [self.rng.randrange(1000) for _ in range(self.rng.randrange(1, 6))]
        return {self.pool.submit(tasks.square, value): value * value for value in values}

    def result(self) -> None:
        for future, right in self.some().items():
            assert future.result(GUARD) == right

    def wait(self) -> None:
        futures = self.some()
        if self.rng.random() < 0.5:
            assert wait(futures, GUARD, FIRST_COMPLETED).done
        assert wait(futures, GUARD).not_done == set()
        assert all(future.result(0) == right for future, right in futures.items())

    def as_completed(self) -> None:
        futures = self.some()
        seen = list(as_completed(futures, GUARD))
        assert len(seen) == len(futures)
        assert all(future.result(0) == futures[future] for future in seen)

    def map(self) -> None:
        count = self.rng.randrange(1, 60)
        results = self.pool.map(tasks.square, range(count), chunksize=self.rng.choice([None, 1, 7]))
        if self.rng.random() < 0.2:
            next(results)
            results.close()  # type: ignore[attr-defined]
        else:
            assert list(results) == [number**2 for number in range(count)]

    def cancel(self) -> None:
        for future, right in self.some().items():
            if future.cancel():
                with pytest.raises(TaskCancelled):
                    future.result(GUARD)
            else:
                assert future.result(GUARD) == right

    def callback(self) -> None:
        def then(future: Any, right: int) -> None:
            # Callbacks may submit and wait themselves, and what they submit may have callbacks.
            assert future.result(0) == right
            inner = self.pool.submit(tasks.square, 7)
            inner.add_done_callback(lambda _: self.called.append(1))
            assert inner.result(GUARD) == 49
            self.called.append(1)

        for future, right in self.some().items():
            self.expected_calls += 2
            future.add_done_callback(lambda future, right=right: then(future, right))

    def poll(self) -> None:
        for future, right in self.some().items():
            eventually(future.done)
            assert future.result(0) == right

    def new(self) -> None:
        value = self.rng.randrange(1000)
        function = a_function(value)
        assert [self.pool.submit(function, each).result(GUARD) for each in range(2)] == [value, 1000 + value]
