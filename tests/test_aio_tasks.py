"""The verbs for tasks, recurring tasks, queues and the stop of an `AsyncProcessWorker`, in which nobody may block."""

import asyncio
import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pooljobs
import pytest
from loops import GUARD, begun, client_of, run, until
from pooljobs import Gate

from mpworker import AsyncProcessWorker, AsyncTaskFuture, AsyncTaskInfo, Retention, StopReport, Task, TaskStatus
from mpworker.errors import (
    ConfigurationError,
    DuplicateTask,
    InvalidArgument,
    QueueFull,
    SerializationError,
    TaskCancelled,
    TaskNotFound,
    WrongEventLoop,
)
from mpworker.loopclient import LoopClient

# ------------------------------------------------------------ register


def test_a_task_is_carried_out() -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=2) as w:
            future = await w.register_task(Task(pow, (2, 10), name="power"))
            assert isinstance(future, AsyncTaskFuture)
            assert await future == 1024
            assert '("power")' in repr(future)
            assert await w.execute_task(Task(int, ("ff",), {"base": 16})) == 255
            assert [await each for each in await w.register_tasks(Task(abs, (-1,)), Task(abs, (-2,)))] == [1, 2]
            with pytest.raises(InvalidArgument, match="register_task needs a Task, not 3"):
                await w.register_task(3)  # type: ignore[arg-type]
            with pytest.raises(InvalidArgument, match="register_task needs a Task, not 3"):
                await w.register_task_after(1.0, 3)  # type: ignore[arg-type]

    run(main)


def test_an_id_belongs_to_one_task(gate: Gate) -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1) as w:
            held = await w.register_task(Task(pooljobs.hold, (gate.folder, "held"), id="one"))
            assert held.task_id == "one"
            assert "one" in repr(held)
            with pytest.raises(DuplicateTask, match="there is a task with the id 'one', which is"):
                await w.register_task(Task(len, ("four",), id="one"))
            gate.release()
            assert await held == "held"
            del held
            with pytest.raises(DuplicateTask):  # it is remembered
                await w.register_task(Task(len, ("four",), id="one"))
            with pytest.raises(DuplicateTask):
                await w.register_task(Task(len, ("four",), id=w.submit(len, "four").task_id))
            with pytest.raises(SerializationError):
                await w.register_task(Task(len, (open,), {"x": (i for i in ())}, id="unsent"))
            assert await (await w.register_task(Task(len, ("four",), id="unsent"))) == 4

    run(main)


def test_an_id_that_many_want_at_once_is_given_once() -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=2) as w:
            task = Task(len, ("four",), id="wanted")
            answers = await asyncio.gather(*(w.register_task(task) for _ in range(20)), return_exceptions=True)
            futures = [each for each in answers if isinstance(each, AsyncTaskFuture)]
            assert [await future for future in futures] == [4]
            assert all(isinstance(each, AsyncTaskFuture | DuplicateTask) for each in answers)

    run(main)


def test_an_id_is_not_given_while_another_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1) as w:
            asked, go_on = asyncio.Event(), asyncio.Event()
            ask = LoopClient._ask

            async def slow(*args: Any) -> Any:
                monkeypatch.setattr(LoopClient, "_ask", ask)
                answer = await ask(*args)
                asked.set()
                await go_on.wait()
                return answer

            monkeypatch.setattr(LoopClient, "_ask", slow)
            task = Task(len, ("four",), id="wanted")
            first = asyncio.create_task(w.register_task(task))
            await asked.wait()
            second = asyncio.create_task(w.execute_task(task))
            for _ in range(20):
                await w.metrics()  # time enough for the second to be done, and forgotten here
            go_on.set()
            answers = await asyncio.gather(first, second, return_exceptions=True)
            assert [isinstance(each, DuplicateTask) for each in answers] == [False, True]

    run(main)


def test_a_call_with_an_idempotency_key_is_one_task(gate: Gate) -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1) as w:
            task = Task(pooljobs.hold, (gate.folder, "once"), id="named", idempotency_key="key")
            futures = await asyncio.gather(*(w.register_task(task) for _ in range(5)))
            assert len(set(map(id, futures))) == 1
            with pytest.raises(DuplicateTask, match="belongs to"):
                await w.register_task(Task(len, ("four",), idempotency_key="key"))
            gate.release()
            assert await futures[0] == "once"
            assert (await w.metrics()).accepted == 1

    run(main)


def test_a_task_for_later_waits_until_then() -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1) as w:
            never = await w.register_task_after(3600, Task(abs, (-1,)))
            assert (await w.get_task(never.task_id)).status is TaskStatus.SCHEDULED
            assert await w.cancel_task(never.task_id)
            begun_at = time.monotonic()
            later = [
                await w.register_task_after(0.1, Task(time.monotonic)),
                await w.register_task_at(datetime.now(UTC) + timedelta(seconds=0.1), Task(time.monotonic)),
            ]
            assert min(await asyncio.gather(*later)) - begun_at >= 0.09

    run(main)


def test_who_stops_waiting_for_a_task_stops_it_but_a_timeout_does_not(gate: Gate) -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1) as w:
            with pytest.raises(TimeoutError, match=r"has not ended within 0.01 s$"):
                await w.execute_task(Task(pooljobs.hold, (gate.folder, "late"), id="late"), timeout=0.01)
            gate.release()
            assert await w.wait()
            assert (await w.get_task("late")).status is TaskStatus.COMPLETED
            waiting = asyncio.create_task(w.execute_task(Task(pooljobs.hold, (gate.folder,), id="left")))
            gate.wait_begun(0)
            await begun(gate)
            await begun(gate)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert await w.wait()
            assert (await w.get_task("left")).status is TaskStatus.CANCELLED

    run(main)


# ------------------------------------------------------------ look up


def test_a_task_can_be_looked_up_at_any_moment(gate: Gate) -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1, retention=Retention(results=True)) as w:
            held = await w.register_task(Task(pooljobs.hold, (gate.folder, "held"), metadata={"case": 7}))
            queued = w.submit(abs, -1)
            await begun(gate)
            info = await w.get_task(held.task_id)
            assert isinstance(info, AsyncTaskInfo)
            assert (info.status, info.name, info.metadata) == (TaskStatus.RUNNING, "hold", {"case": 7})
            assert info.future is held
            assert (await w.get_task(queued.task_id)).status is TaskStatus.QUEUED
            gate.release()
            assert await asyncio.gather(held, queued) == ["held", 1]
            again = await w.get_task(held.task_id)
            assert again.status is TaskStatus.COMPLETED
            assert again.future is not None
            assert again.future is not held
            assert again.future.task_id == held.task_id
            assert await again.future == "held"
            assert [info.status for info in await w.get_tasks()] == [TaskStatus.COMPLETED] * 2
            assert await w.get_tasks(status="failed") == []
            for unknown in ("unknown", f"{client_of(w).prefix}99999"):
                with pytest.raises(TaskNotFound):
                    await w.get_task(unknown)
            with pytest.raises(InvalidArgument, match="a task id is a str, not 3"):
                await w.get_task(3)  # type: ignore[arg-type]
            with pytest.raises(ConfigurationError, match="status must be one of"):
                await w.get_tasks(status="odd")

    run(main)


def test_what_is_told_of_a_failure_need_not_be_asked_for() -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1) as w:
            failed = w.submit(pooljobs.fail, "wrong")
            with pytest.raises(ValueError, match="wrong"):
                await failed
            info = await w.get_task(failed.task_id)
            assert info.status is TaskStatus.FAILED
            assert info.future is not None
            await asyncio.wait([info.future])  # and nobody asks what came of it: `run` sees that asyncio says nothing

    run(main)


def test_the_counts_are_those_of_a_pool(gate: Gate) -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1) as w:
            held = w.submit(pooljobs.hold, gate.folder)
            await begun(gate)
            w.submit(abs, -1)
            later = await w.register_task_after(3600, Task(abs, (-1,)))
            counts = await w.metrics()
            assert (counts.accepted, counts.running, counts.queued, counts.scheduled) == (3, 1, 1, 1)
            assert await w.cancel_task(later.task_id)
            with pytest.raises(TaskCancelled):
                await later
            assert not await w.cancel_task(later.task_id)
            assert (await w.metrics()).cancelled == 1
            gate.release()
            await held

    run(main)


def test_what_is_remembered_can_be_changed() -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1, retention=Retention(max_entries=1)) as w:
            first, second = w.submit(abs, -1), w.submit(abs, -2)
            await asyncio.gather(first, second)
            with pytest.raises(TaskNotFound):
                await w.get_task(first.task_id)
            await w.set_retention(Retention(max_entries=0))
            with pytest.raises(TaskNotFound):
                await w.get_task(second.task_id)
            with pytest.raises(InvalidArgument):
                await w.set_retention(3)  # type: ignore[arg-type]

    run(main)


# ------------------------------------------------------------ cancel, run again, wait


def test_a_task_that_failed_is_run_again(tmp_path: Path) -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1) as w:
            failed = w.submit(os.listdir, str(tmp_path / "there"))
            with pytest.raises(FileNotFoundError):
                await failed
            (tmp_path / "there").mkdir()
            again = await w.retry_task(failed.task_id)
            assert isinstance(again, AsyncTaskFuture)
            assert await again == []
            assert (await w.get_task(again.task_id)).retry_of == failed.task_id
            with pytest.raises(ConfigurationError, match="only what failed, timed out or was cancelled can be"):
                await w.retry_task(again.task_id)
            with pytest.raises(TaskNotFound):
                await w.retry_task("unknown")
            assert not client_of(w).pending

    run(main)


def test_all_is_cancelled(gate: Gate) -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1, max_pending=3) as w:
            futures = [w.submit(pooljobs.hold, gate.folder) for _ in range(8)]
            await begun(gate)
            assert await w.cancel_all() == 8
            for each in futures:
                with pytest.raises(TaskCancelled):
                    await each
            assert await w.cancel_all() == 0

    run(main)


def test_what_was_cancelled_is_so_for_whoever_asks_next(gate: Gate) -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1) as w:
            held = w.submit(pooljobs.hold, gate.folder, "held")
            await begun(gate)
            for number in range(10):
                waits, later = w.submit(abs, -1), await w.register_task_after(60.0, Task(abs, (-1,)))
                asked = [w.get_task(waits.task_id), w.get_task(later.task_id), w.metrics()]
                assert waits.cancel()
                assert later.cancel()
                first, second, counts = [await question for question in asked]
                assert (first.status, second.status) == (TaskStatus.CANCELLED, TaskStatus.CANCELLED)
                assert (counts.queued, counts.scheduled, counts.cancelled) == (0, 0, 2 * number + 2)
            gate.release()
            assert await held == "held"

    run(main)


def test_who_waits_for_all_finds_every_future_done(gate: Gate) -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=2) as w:
            assert await w.wait()
            held = w.submit(pooljobs.hold, gate.folder)
            assert not await w.wait(0)
            assert not await w.wait(0.01)
            results = w.map(abs, range(-40, 0))
            assert await anext(results) == 40
            gate.release()
            futures = [w.submit(abs, number) for number in range(2000)]
            assert await w.wait()
            assert held.done()
            assert all(future.done() for future in futures)
            futures = [w.submit(abs, number) for number in range(2000)]
            while len(client_of(w).due) < 2000:
                client_of(w).poll()  # more than one turn tells of
            assert await w.wait()
            assert all(future.done() for future in futures)
            await results.aclose()  # type: ignore[attr-defined]

    run(main)


# ------------------------------------------------------------ what waits in line


def test_what_waits_in_line_is_known(gate: Gate) -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1, max_pending=2) as w:
            ended = w.submit(abs, -9)
            assert await ended == 9
            held = w.submit(pooljobs.hold, gate.folder)
            w.submit(abs, -1)
            await begun(gate)
            view = w.options(queue="mail", priority=-3, weight=7)
            waiting = view.submit(abs, -2)
            named = await w.register_task(
                Task(abs, (-3,), id="mine", name="third", metadata={"a": 1}, run_at=3600.0, deadline=7200.0)
            )
            assert len(client_of(w).tasks_in_line()) == 2

            info = await w.get_task(waiting.task_id)
            assert (info.status, info.name) == (TaskStatus.QUEUED, "abs")
            assert (info.queue, info.priority, info.weight) == ("mail", -3, 7)
            assert info.future is waiting
            info = await w.get_task("mine")
            assert (info.task_id, info.status, info.name) == ("mine", TaskStatus.SCHEDULED, "third")
            assert info.metadata == {"a": 1}
            assert info.run_at is not None
            assert abs(info.run_at - time.time() - 3600) < GUARD
            assert info.future is named

            counts = await w.metrics()
            assert (counts.accepted, counts.running, counts.queued, counts.scheduled) == (5, 1, 2, 1)
            assert counts.queues == {"default": 1, "mail": 1}
            assert (await w.queues())["mail"].queued == 1
            ids = [info.task_id for info in await w.get_tasks()]
            assert ids[2:] == [waiting.task_id, "mine", ended.task_id]
            assert [info.task_id for info in await w.get_tasks(queue="mail")] == [waiting.task_id]
            assert [info.task_id for info in await w.get_tasks(status="scheduled")] == ["mine"]
            assert [info.task_id for info in await w.get_tasks(limit=3)] == ids[:3]
            with pytest.raises(DuplicateTask):
                await w.register_task(Task(abs, (-3,), id="mine"))
            with pytest.raises(ConfigurationError, match="is queued: only what failed"):
                await w.retry_task(waiting.task_id)

            assert await w.cancel_task("mine")
            with pytest.raises(TaskCancelled):
                await named
            gate.release()
            await asyncio.gather(held, waiting)
            assert await w.wait()
            assert (await w.get_tasks())[0].task_id == waiting.task_id

    run(main)


def test_no_task_is_in_line_and_with_the_supervisor_or_in_neither() -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=2, max_pending=8) as w:
            futures = [w.submit(abs, number) for number in range(500)]

            async def ask() -> None:
                while not all(future.done() for future in futures):
                    assert (await w.metrics()).accepted == 500
                    assert len(await w.get_tasks(limit=1000)) == 500
                    await w.get_task(futures[-1].task_id)

            await asyncio.gather(ask(), ask())

    run(main)


def test_with_a_submit_timeout_what_waits_too_long_is_refused(gate: Gate) -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1, max_pending=1, submit_timeout=0.05) as w:
            held = w.submit(pooljobs.hold, gate.folder, "held")
            task = Task(abs, (-1,), idempotency_key="key")
            began = asyncio.get_running_loop().time()
            late = await w.register_task(task)
            with pytest.raises(
                QueueFull, match=r"^max_pending=1 tasks are unfinished, and submit_timeout=0.05 s is over"
            ):
                await late
            assert asyncio.get_running_loop().time() - began > 0.049
            assert client_of(w).pending.keys() == {held._key}
            another = w.submit(abs, -3)
            assert len(client_of(w).tasks_in_line()) == 1  # what was refused has made no room
            another.cancel()
            gate.release()
            assert await held == "held"
            assert await (await w.register_task(task)) == 1  # the key of what was refused is free
            in_time = w.submit(abs, -2)
            assert await in_time == 2
            await asyncio.sleep(0)

    run(main)


def test_with_a_submit_timeout_what_has_been_sent_is_not_refused(gate: Gate) -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1, max_pending=1, submit_timeout=GUARD) as w:
            first, second = (w.submit(pooljobs.hold, gate.folder, number) for number in (1, 2))
            assert len(client_of(w).tasks_in_line()) == 1
            for future, value in ((first, 1), (second, 2)):
                await begun(gate)
                client_of(w)._give_up(future._key)  # as its timer does, however late
                gate.release()
                assert await future == value

    run(main)


def test_without_a_submit_timeout_to_wait_for_submit_itself_refuses(gate: Gate) -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1, max_pending=1, submit_timeout=0) as w:
            held = w.submit(pooljobs.hold, gate.folder, "held")
            with pytest.raises(QueueFull):
                w.submit(abs, -1)
            with pytest.raises(QueueFull):
                await w.register_task(Task(abs, (-1,)))
            gate.release()
            assert await held == "held"
            assert await w.submit(abs, -1) == 1

    run(main)


# ------------------------------------------------------------ steer


def test_a_drain_waits_for_what_waits_in_line_too(gate: Gate) -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1, max_pending=2) as w:
            before = [w.submit(pooljobs.hold, gate.folder, number) for number in range(5)]
            draining = asyncio.create_task(w.drain())
            await asyncio.sleep(0)
            after = w.submit(abs, -1)
            gate.release(5)
            assert await draining
            assert all(future.done() for future in before)
            assert (await w.queues())["default"].draining
            assert not after.done()
            await w.resume()
            assert await after == 1

    run(main)


def test_a_resume_ends_a_drain_that_waits_in_line(gate: Gate) -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1, max_pending=1) as w:
            futures = [w.submit(pooljobs.hold, gate.folder, number) for number in range(3)]
            assert not await w.drain(timeout=0.01)
            draining = asyncio.create_task(w.drain("default"))
            await asyncio.sleep(0)
            await w.resume("other")
            assert not draining.done()
            await w.resume()
            assert not await draining
            gate.release(3)
            assert await asyncio.gather(*futures) == [0, 1, 2]
            assert await w.submit(abs, -1) == 1

    run(main)


def test_the_number_of_children_is_changed() -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1) as w:
            await w.set_max_workers(3)
            assert w.n == 3
            while len((await w.processes())["children"]) < 3:
                pass
            with pytest.raises(ConfigurationError):
                await w.set_max_workers(0)
            assert w.n == 3

    run(main)


def test_recurring_tasks_are_steered() -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1) as w:
            await w.options(timeout=GUARD).register_cron_task("report", "@monthly", Task(len, ("four",)))
            assert [task.name for task in await w.cron_tasks()] == ["report"]
            with pytest.raises(ConfigurationError, match="is registered already"):
                await w.register_cron_task("report", "@monthly", print)
            with pytest.raises(ConfigurationError, match="overlap must be one of"):
                await w.register_cron_task("other", "@monthly", print, overlap="odd")  # type: ignore[arg-type]
            assert await w.run_cron_task("report")
            while not (history := await w.cron_history("report")) or history[0].outcome == "running":
                pass
            assert (await w.get_task(history[0].task_id)).status is TaskStatus.COMPLETED
            await w.pause_cron_task("report")
            assert (await w.cron_tasks())[0].paused
            await w.resume_cron_task("report")
            assert not (await w.cron_tasks())[0].paused
            await w.remove_cron_task("report")
            assert await w.cron_tasks() == []
            with pytest.raises(TaskNotFound, match="no cron task is called 'report'"):
                await w.pause_cron_task("report")

    run(main)


def test_every_verb_keeps_to_its_loop() -> None:
    w = AsyncProcessWorker(n=1)

    async def use() -> None:
        assert await w.submit(abs, -1) == 1

    async def others() -> None:
        calls: list[Any] = [
            *(w.register_task(Task(abs, (-1,))), w.execute_task(Task(abs, (-1,))), w.register_tasks(Task(abs, (-1,)))),
            *(w.register_task_at(0, Task(abs, (-1,))), w.register_task_after(0, Task(abs, (-1,)))),
            *(w.get_task("1"), w.get_tasks(), w.metrics(), w.cancel_task("1"), w.cancel_all(), w.retry_task("1")),
            *(w.wait(), w.set_retention(Retention()), w.set_max_workers(2), w.drain(), w.cron_tasks()),
            *(w.register_cron_task("a", "@daily", print), w.cron_history("a"), w.run_cron_task("a")),
            *(w.pause_cron_task("a"), w.resume_cron_task("a"), w.remove_cron_task("a")),
            *(w.stop_graceful(), w.stop_graceful(wait=False)),
        ]
        for call in calls:
            with pytest.raises(WrongEventLoop):
                await call

    async def end() -> None:
        await w.stop_now()

    with asyncio.Runner() as runner, asyncio.Runner() as other:
        runner.run(use())
        other.run(others())
        runner.run(end())


# ------------------------------------------------------------ stop


def test_a_stop_tells_what_it_has_left(gate: Gate) -> None:
    async def main() -> None:
        w = AsyncProcessWorker(n=1, max_pending=2)
        done = w.submit(abs, -3)
        assert await done == 3
        left = [w.submit(pooljobs.hold, gate.folder) for _ in range(4)]
        await begun(gate)
        report = await w.stop_graceful(timeout=0.05)
        assert report == StopReport(False, 4, tuple(future.task_id for future in left), 0)
        assert await w.stop_graceful() == report
        for future in left:
            with pytest.raises(TaskCancelled):
                await future

    run(main)


def test_a_stop_cancels_what_is_queued_if_asked_for(gate: Gate) -> None:
    async def main() -> None:
        w = AsyncProcessWorker(n=1, max_pending=3)
        held = w.submit(pooljobs.hold, gate.folder, "held")
        await begun(gate)
        queued = [w.submit(abs, number) for number in range(5)]
        stopping = asyncio.create_task(w.stop_graceful(cancel_queued=True))
        await until(lambda: all(future.done() for future in queued))
        gate.release()
        assert await held == "held"
        report = await stopping
        assert report == StopReport(False, 5, tuple(future.task_id for future in queued), 0)
        for future in queued:
            with pytest.raises(TaskCancelled):
                await future

    run(main)


def test_a_stop_tells_if_it_cut_a_recurring_task_short(gate: Gate) -> None:
    async def main() -> None:
        w = AsyncProcessWorker(n=1)
        await w.register_cron_task("report", "@monthly", Task(pooljobs.hold, (gate.folder,)))
        await w.run_cron_task("report")
        await begun(gate)
        (run_of_it,) = await w.cron_history("report")
        assert await w.stop_graceful(timeout=0.05) == StopReport(False, 1, (run_of_it.task_id,))

    run(main)


def test_a_stop_goes_on_by_itself(gate: Gate) -> None:
    async def main() -> None:
        w = AsyncProcessWorker(n=1)
        held = w.submit(pooljobs.hold, gate.folder)
        await begun(gate)
        report = await w.stop_graceful(timeout=0.05, wait=False)
        assert (report.finished, report.task_ids) == (False, (held.task_id,))
        with pytest.raises(TaskCancelled):
            await held
        await until(client_of(w).is_over)

    run(main)


def test_a_stop_of_a_loop_that_ends_goes_on_by_itself(gate: Gate) -> None:
    async def main() -> str:
        held = w.submit(pooljobs.hold, gate.folder)
        await begun(gate)
        queued = w.submit(abs, -1)
        report = await w.stop_graceful(timeout=GUARD, cancel_queued=True, wait=False)
        assert report.task_ids == (held.task_id, queued.task_id)
        return queued.task_id

    w = AsyncProcessWorker(n=1)
    queued = asyncio.run(main())
    gate.release()
    assert w._pool.stop_graceful() == StopReport(False, 1, (queued,), 0)  # as the exit handler does
