"""The order of starts where tasks are of several clients."""

from collections import Counter, deque

from hypothesis import given, settings
from hypothesis import strategies as st

from mpworker.supervisor.fair import FairLine, FairQueues, client_of
from mpworker.supervisor.lifecycle import CANCELLED, OFFERED
from mpworker.supervisor.queues import Queues
from mpworker.supervisor.registry import CONTEXT_SHIFT, DetailedTask, Task, TaskOptions

PLAIN = TaskOptions()


def task_of(client: int, number: int, options: TaskOptions = PLAIN) -> Task:
    return Task(client << CONTEXT_SHIFT | number, None, options, b"")


def started(queues: Queues, most: int = 10**9) -> list[tuple[int, int]]:
    """What is offered next, one after the other: the client, and its own number of the task."""
    found = []
    while len(found) < most and (task := queues.first(0.0)) is not None:
        queues.take()
        task.state = OFFERED
        found.append((client_of(task.key), task.key & 0xFFFF))
    return found


def test_clients_take_turns() -> None:
    line = FairLine()
    line.extend(task_of(1, number) for number in range(5))
    line.extend(task_of(2, number) for number in range(2))
    line.append(task_of(3, 0))
    order = []
    while line:
        first = line[0]
        assert line.popleft() is first
        order.append((client_of(first.key), first.key & 0xFF))
    assert order == [(1, 0), (2, 0), (3, 0), (1, 1), (2, 1), (1, 2), (1, 3), (1, 4)]


@settings(deadline=None)
@given(st.lists(st.one_of(st.integers(1, 4), st.none())))
def test_a_line_is_what_a_list_for_each_client_says(steps: list[int | None]) -> None:
    line, model, turns = FairLine(), dict[int, deque[int]](), deque[int]()
    for number, client in enumerate(steps):
        if client is not None:
            line.append(task_of(client, number))
            if client not in model:
                model[client] = deque()
                turns.append(client)
            model[client].append(number)
        elif turns:
            turn = turns.popleft()
            task = line.popleft()
            assert (client_of(task.key), task.key & 0xFFFF) == (turn, model[turn].popleft())
            if model[turn]:
                turns.append(turn)
            else:
                del model[turn]
        assert len(line) == sum(map(len, model.values()))
        assert sorted(task.key & 0xFFFF for task in line) == sorted(each for own in model.values() for each in own)


def test_a_flood_of_one_client_is_in_anothers_way_by_one_task() -> None:
    queues = FairQueues()
    for number in range(10_000):
        queues.append(task_of(1, number))
    started(queues, 100)
    queues.append(task_of(2, 7))
    assert started(queues, 2).index((2, 7)) <= 1


def test_priorities_and_queues_are_of_all_clients_together() -> None:
    queues = FairQueues()
    queues.configure("mail", 2, None, None, 1, 0.0)
    urgent, mail = TaskOptions(priority=-1), TaskOptions(queue="mail")
    for number in range(30):
        queues.append(task_of(1, number))
        queues.append(task_of(1, 100 + number, mail))
        queues.append(task_of(2, 200 + number, mail))
    queues.append(task_of(2, 300, urgent))
    found = started(queues, 30)
    assert (2, 300) in found[:3]
    kinds = Counter((client, number // 100) for client, number in found)
    assert abs(kinds[1, 1] - kinds[2, 2]) <= 1
    assert abs(kinds[1, 1] + kinds[2, 2] - 20) <= 2


def test_what_is_set_aside_is_in_nobodys_way_and_comes_back_in_its_order() -> None:
    queues = FairQueues()
    for number in range(3):
        queues.append(task_of(1, number))
        queues.append(task_of(2, number))
    keyed = [DetailedTask(1 << CONTEXT_SHIFT | number, None, PLAIN, b"") for number in (10, 11)]
    for task in keyed:
        task.concurrency_key = "one at a time"
        queues.append(task)
    assert started(queues, 2) == [(1, 0), (2, 0)]
    queues.set_aside(1)
    queues.set_aside(1)
    queues.append(task_of(1, 3))
    assert len(queues) == 2
    assert queues.states()["default"]["queued"] == 2
    assert started(queues) == [(2, 1), (2, 2)]
    assert queues.first(0.0) is None
    queues.go_on_with(1)
    queues.go_on_with(1)
    assert len(queues) == 5
    assert started(queues, 2) == [(1, 1), (1, 2)]


def test_what_ends_while_it_is_aside_is_gone() -> None:
    queues = FairQueues()
    tasks = [task_of(1, number) for number in range(3)]
    for task in tasks:
        queues.append(task)
    queues.set_aside(1)
    tasks[1].state = CANCELLED
    queues.dropped(tasks[1])
    late = task_of(1, 9)
    late.order = 5
    queues.put_back(late)
    queues.go_on_with(1)
    assert started(queues) == [(1, 9), (1, 0), (1, 2)]


def test_a_parked_task_of_a_client_that_is_set_aside_waits_there() -> None:
    queues = FairQueues()
    tasks = [DetailedTask(1 << CONTEXT_SHIFT | number, None, PLAIN, b"") for number in range(3)]
    for task in tasks:
        task.concurrency_key = "one at a time"
        queues.append(task)
    first = queues.first(0.0)
    assert first is tasks[0]
    queues.take()
    first.state = OFFERED
    queues.offered(first)
    assert queues.first(0.0) is None  # the others are parked
    queues.set_aside(1)
    queues.over(first)
    assert queues.first(0.0) is None
    queues.go_on_with(1)
    assert queues.first(0.0) is tasks[1]
