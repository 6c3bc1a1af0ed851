"""Traces: what `record=` writes, and that the planner reads it."""

import asyncio
import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from leaks import wait_until

from mpworker import AsyncProcessWorker, ProcessWorker, RetryPolicy, Task
from mpworker.errors import ConfigurationError, InvalidArgument
from mpworker.planning import trace as traces
from mpworker.planning.load import Costs
from mpworker.supervisor.tracing import Trace

SECRET = "the-name-of-a-patient"


def fails(text: str) -> None:
    raise ValueError(text)


def lines(path: Path) -> list[dict[str, Any]]:
    """Those that are whole: while it is written a file may end in the middle of one."""
    return [json.loads(line) for line in path.read_text().split("\n")[:-1] if line]


def tasks(path: Path) -> list[dict[str, Any]]:
    return [line for line in lines(path) if "attempts" in line]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "trace.jsonl"


def test_each_task_has_a_line(path: Path) -> None:
    with ProcessWorker(n=2, record=path) as w:
        w.options(priority=3, queue="slow", weight=2).submit(len, "x" * 1000).result()
        assert w.submit(str.upper, "a" * 500).result() == "A" * 500
    first, second = tasks(path)
    assert (first["queue"], first["priority"], first["weight"]) == ("slow", 3, 2)
    assert (second["queue"], second["priority"]) == ("default", 0)
    assert 1000 < first["size"] < 1100
    assert 500 < second["result"] < 600
    assert first["function"] != second["function"]
    for task in (first, second):
        ((seconds, status),) = task["attempts"]
        assert status == "ok"
        assert 0 <= task["waited"] <= task["took"]
        assert 0 < seconds <= task["took"]
    assert 0 <= first["at"] < second["at"]
    assert path.stat().st_mode & 0o077 == 0, "only its owner reads it"


def test_attempts_have_their_outcomes(path: Path) -> None:
    with ProcessWorker(n=1, record=path, grace=30.0) as w:
        policy = RetryPolicy(base=0.001, jitter="none")
        w.options(retries=2, retry_policy=policy).submit(fails, SECRET).exception()
        w.options(timeout=0.05).submit(time.sleep, 60.0).exception()
        w.options(crash_retries=1).submit(os._exit, 3).exception()
        w.submit(sys.exit, 3).exception()
        blocker = w.submit(time.sleep, 60.0)
        cancelled = w.submit(len, "never begins")
        cancelled.cancel()
        assert wait_until(blocker.running, 30.0)
        blocker.cancel()
        w.register_task(Task(time.sleep, (60.0,), deadline=0.05)).exception()
    failed, late, crashed, exited, *rest = tasks(path)
    assert [status for _, status in failed["attempts"]] == ["error"] * 3
    assert (failed["retries"], failed["backoff"]) == (2, [0.001, 2.0, policy.cap, "none"])
    assert [status for _, status in late["attempts"]] == ["timed_out"]
    assert late["attempts"][0][0] >= late["timeout"] == 0.05
    assert [status for _, status in crashed["attempts"]] == ["crashed", "crashed"]
    assert [status for _, status in exited["attempts"]] == ["exited"]
    never, blocked, expired = rest
    assert never["attempts"] == []
    assert "waited" not in never
    assert never["cancelled"] > 0
    assert [status for _, status in blocked["attempts"]] == ["cancelled"]
    assert blocked["cancelled"] > 0
    assert expired["deadline"] == pytest.approx(0.05, abs=0.02)
    assert "cancelled" not in expired


def test_nothing_of_a_payload_is_in_it(path: Path) -> None:
    with ProcessWorker(n=1, record=path) as w:
        w.submit(str.upper, SECRET).result()
        w.submit(fails, SECRET).exception()
        w.options(concurrency_key=SECRET, concurrency=2).submit(len, SECRET).result()
        w.register_task(Task(len, (SECRET,), id=SECRET, name=SECRET, metadata={"who": SECRET})).result()
        assert list(w.map(str.upper, [SECRET] * 3)) == [SECRET.upper()] * 3
    text = path.read_text()
    assert SECRET not in text
    assert SECRET.upper() not in text
    (keyed,) = [task for task in tasks(path) if "key" in task]
    assert (keyed["key"], keyed["concurrency"]) == (1, 2)


def test_items_of_a_map_are_counted(path: Path) -> None:
    with ProcessWorker(n=2, record=path) as w:
        assert sum(w.map(abs, range(5000))) == 12_497_500
    assert sum(task["items"] for task in tasks(path)) == 5000
    assert len(traces.read(str(path)).jobs) == len(tasks(path))


def test_the_pool_is_told(path: Path) -> None:
    from mpworker import QueueOptions

    with ProcessWorker(n=2, record=path, rate=500.0, queues={"slow": QueueOptions(weight=3, max_running=1)}) as w:
        w.submit(len, "").result()
    (pool,) = [line["pool"] for line in lines(path) if "pool" in line]
    assert (pool["n"], pool["rate"], pool["burst"]) == (2, 500.0, 2)
    assert pool["queues"]["slow"] == {"weight": 3, "max_running": 1, "rate": None, "burst": None}
    read = traces.read(str(path))
    assert (read.n, read.rate, read.burst, read.queues["slow"].max_running) == (2, 500.0, 2, 1)


def test_lines_are_there_as_soon_as_the_pool_rests(path: Path) -> None:
    with ProcessWorker(n=1, record=path) as w:
        w.submit(len, "").result()
        assert wait_until(lambda: tasks(path), 30.0)


def test_a_killed_program_loses_nothing_that_had_ended(path: Path) -> None:
    program = """if True:
        import sys
        from mpworker import ProcessWorker
        w = ProcessWorker(n=1, record=sys.argv[1])
        print(sum(f.result() for f in [w.submit(len, "four") for _ in range(1000)]), flush=True)
        sys.stdin.read()
    """
    with subprocess.Popen(
        [sys.executable, "-c", program, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "4000\n"
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert wait_until(lambda: len(tasks(path)) == 1000, 30.0)


def test_what_has_ended_last_is_written_at_the_end(path: Path) -> None:
    """By a supervisor that is stopped before its next turn."""
    done: list[str] = []
    nobody = SimpleNamespace(trace=lambda ended: None)
    world = SimpleNamespace(now_ns=0, emit=None, emit_items=None, everyone=[])
    ending = SimpleNamespace(answer_later_ones=None)
    loop: Any = SimpleNamespace(
        scheduler=nobody, world=world, session=SimpleNamespace(requests=ending), close=lambda: done.append("closed")
    )
    Trace(loop, str(path)).install()
    assert path.stat().st_size == 0
    loop.close()
    assert done == ["closed"]
    assert lines(path)[0]["trace"] == 1


def test_another_run_goes_to_the_end(path: Path) -> None:
    for count in (1, 2):
        with ProcessWorker(n=1, record=str(path)) as w:
            for _ in range(count):
                w.submit(len, "").result()
    assert len(tasks(path)) == 3
    read = traces.read(str(path))
    assert len(read.jobs) == 2
    assert read.notes == [f"{path} has 2 runs: this is the last one"]


def test_a_line_that_a_kill_has_cut_off_is_left_out(path: Path) -> None:
    with ProcessWorker(n=1, record=path) as w:
        w.submit(len, "").result()
    path.write_text(path.read_text() + '{"at":1.0,"to')
    cut = traces.read(str(path))
    assert len(cut.jobs) == 1
    assert "was cut off" in cut.notes[0]
    with ProcessWorker(n=1, record=path) as w:
        w.submit(len, "").result()
        w.submit(len, "").result()
    assert len(traces.read(str(path)).jobs) == 2


def test_an_event_loop_records_too(path: Path) -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1, record=path) as w:
            assert await w.submit(len, "four") == 4

    asyncio.run(main())
    assert len(tasks(path)) == 1


def test_hooks_and_a_trace_do_not_disturb_each_other(path: Path) -> None:
    from mpworker import Hooks, Retention

    ended: list[Any] = []
    with ProcessWorker(n=1, record=path, hooks=Hooks(on_finish=ended.append)) as w:
        w.submit(len, "").result()
        w.set_retention(Retention(max_entries=5000))
        w.submit(len, "").result()
        w.set_hooks(None)
        w.submit(len, "").result()
    assert len(tasks(path)) == 3
    assert len(ended) == 2


def test_a_full_disk_ends_the_trace_and_nothing_else() -> None:
    """/dev/full is no regular file, and refused; RLIMIT_FSIZE is like a full disk."""
    program = f"""if True:
        import logging, resource, signal, sys
        logging.basicConfig(stream=sys.stdout, format="%(message)s")
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        from mpworker import ProcessWorker
        with ProcessWorker(n=1, record=sys.argv[1]) as w:
            w.submit(len, "").result()
            resource.prlimit(w.processes()["supervisor"], resource.RLIMIT_FSIZE, (1000, 1000))
            assert sum(w.submit(len, "four").result() for _ in range(100)) == 400
        print("done")
        # {errno.EFBIG}
    """
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        run = subprocess.run(
            [sys.executable, "-c", program, f"{folder}/t"], capture_output=True, text=True, timeout=60, check=False
        )
        assert run.returncode == 0, run.stderr
        assert run.stdout.splitlines()[-1] == "done"
        assert "trace_failed" in run.stdout
        assert run.stdout.count("trace_failed") == 1
        assert Path(folder, "t").stat().st_size <= 1000


def test_where_nothing_is_recorded_nothing_is_replaced_or_loaded() -> None:
    from mpworker.supervisor.fanout import ClientPort
    from mpworker.supervisor.requests import Requests

    assert "trace" not in vars(ClientPort)
    assert "trace" not in vars(Requests)
    program = """if True:
        import sys
        import mpworker.supervisor.loop
        print("mpworker.supervisor.tracing" in sys.modules)
    """
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="record must be the path of a file or None, not 3"):
        ProcessWorker(n=1, record=3)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="not b'bytes'"):
        ProcessWorker(n=1, record=b"bytes")  # type: ignore[arg-type]
    for bad in (tmp_path, tmp_path / "none" / "t", "/dev/full", "a\0b"):
        with pytest.raises(ConfigurationError, match=r"record=.* cannot be written: "):
            ProcessWorker(n=1, record=bad)
    with pytest.raises(ConfigurationError, match="record is empty"):
        ProcessWorker(n=1, record="")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ConfigurationError, match="cannot be written"):
        ProcessWorker(n=1, record=tmp_path / "fifo")


HEADER = '{"trace":1,"cores":2}\n'
LINE = '{"at":1.0,"took":0.5,"function":1,"queue":"default","priority":0,"size":3,"attempts":[[0.25,"ok"]]}\n'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty: no trace begins in it"),
        (HEADER, "no task has ended in this trace"),
        (LINE, r"line 1: this is no trace, which begins with the line"),
        ("index,seconds\n1,2\n", "line 1: this is no line of a trace: 'index,seconds'"),
        ("[1]\n", r"line 1: this is no line of a trace: '\[1\]'"),
        ('{"trace":2}\n', "line 1: this is of trace format 2, and 1 is known"),
        (HEADER + LINE + "oops\n" + LINE, "line 3: this is no line of a trace: 'oops'"),
        (HEADER + LINE.replace('"took":0.5,', ""), "line 2: 'took' is missing"),
        (HEADER + LINE.replace("0.5", "-0.5"), "line 2: took must not be -0.5"),
        (HEADER + LINE.replace("1.0", "NaN"), "line 2: at must not be NaN"),
        (HEADER + LINE.replace('"default"', "7"), "line 2: queue must not be 7"),
        (HEADER + LINE.replace('"size":3', '"size":true'), "line 2: size must not be true"),
        (HEADER + LINE.replace('"ok"', '"fine"'), r"line 2: an attempt must not be \[0.25, \"fine\"\]"),
        (HEADER + LINE.replace("[0.25,", "[-1,"), "line 2: an attempt's time must not be -1"),
        (HEADER + LINE.replace('"size"', '"timeout":"x","size"'), 'line 2: timeout must not be "x"'),
        (HEADER + '{"pool":{"n":2}}\n' + LINE, "line 2: this is no description of a pool"),
        (HEADER + '{"memory":-1}\n' + LINE, "line 2: memory must not be -1"),
    ],
)
def test_what_is_no_trace_is_refused(path: Path, text: str, says: str) -> None:
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=says) as refused:
        traces.read(str(path))
    assert str(path) in str(refused.value)


def test_a_trace_that_is_not_there_is_named(path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"the trace .*trace.jsonl cannot be read: No such file"):
        traces.read(str(path))


def written(path: Path, *tasks: dict[str, Any]) -> traces.Trace:
    path.write_text(HEADER + "".join(json.dumps(json.loads(LINE) | task) + "\n" for task in tasks))
    return traces.read(str(path))


def test_what_was_cut_short_is_taken_for_as_long_as_others_at_least(path: Path) -> None:
    ended = [{"at": each, "attempts": [[seconds, "ok"]]} for each, seconds in enumerate((0.1, 0.2, 3.0))]
    trace = written(
        path,
        *ended,
        {"at": 4, "attempts": [], "cancelled": 2.0},
        {"at": 5, "attempts": [[1.0, "cancelled"]], "cancelled": 1.5},
        {"at": 6, "attempts": [[2.0, "timed_out"]], "deadline": 2.0, "timeout": 2.5},
        {"at": 7, "attempts": [[0.5, "timed_out"], [0.5, "ok"]], "timeout": 0.5, "retries": 1},
        {"at": 8, "attempts": [[9.0, "timed_out"]], "deadline": 2.0},
    )
    never, cut, missed, late, longest = trace.jobs[3:]
    assert never.attempts[0].seconds in (0.1, 0.2, 0.5, 3.0)
    assert (never.cancel, cut.cancel) == (2.0, 1.5)
    assert cut.attempts[0].seconds == missed.attempts[0].seconds == 3.0
    assert late.attempts[0].seconds == float("inf")
    assert longest.attempts[0].seconds == 9.0
    assert "4 of 8 tasks did not run to an end of their own" in trace.notes[0]


def test_how_long_one_process_waits_for_the_other_is_in_a_trace(path: Path) -> None:
    trace = written(
        path,
        {"at": 1, "waited": 1.0, "took": 1.253},
        {"at": 2, "waited": 0.0, "took": 0.251},
        {"at": 3, "waited": 0.0, "took": 9.0, "items": 3},
        {"at": 4, "took": 9.0, "waited": 0.0, "attempts": [[0.1, "error"], [0.1, "ok"]]},
    )
    assert trace.costs().wake == pytest.approx(0.002)
    assert "as in the trace" in trace.costs().source
    assert written(path, {"at": 1}).costs().wake == Costs().wake


def test_a_closed_loop_is_told_from_an_open_one(path: Path) -> None:
    closed = written(path, *({"at": each * 0.5001, "took": 0.5} for each in range(200)))
    assert any("closed loop" in note for note in closed.notes)
    opened = written(path, *({"at": each * 0.7, "took": 0.5} for each in range(200)))
    assert not opened.notes


def test_a_resampled_trace_keeps_its_rate_and_its_bursts(path: Path) -> None:
    trace = written(path, *({"at": burst * 10 + each * 0.001} for burst in range(100) for each in range(10)))
    again = trace.load(1)
    assert trace.load(0).jobs == trace.jobs
    assert again.jobs != trace.jobs
    assert again.jobs == trace.load(1).jobs
    assert len(again.jobs) == 1000
    assert again.rate == pytest.approx(trace.load(0).rate, rel=0.1)
    near = sum(later.at - sooner.at < 0.01 for sooner, later in zip(again.jobs, again.jobs[1:], strict=False))
    assert near >= 880
    assert all(sooner.at <= later.at for sooner, later in zip(again.jobs, again.jobs[1:], strict=False))
