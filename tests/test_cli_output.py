"""The promises of the output of ``mpworker map``: what is written is there, once, and can be gone on with."""

from __future__ import annotations

import json
import os
import random
import resource
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import ClassVar, Self

import pytest
from commands import command, lines, numbers, results, run

from mpworker.cli import app, inputs, output
from mpworker.cli import map as map_module
from mpworker.cli.errors import CommandError, ExitCode
from mpworker.cli.inputs import START, Lines, Mark
from mpworker.cli.item import Failed
from mpworker.cli.journal import Checkpoint
from mpworker.cli.output import Output, OutputPaths
from mpworker.errors import ConfigurationError, StartFailed, SupervisorLost

# ------------------------------------------------------------ durability


HEADER = {"target": "tasks:odd", "mode": "lines", "inputs": [["file", "/in.txt", 7, 7]]}
ITEMS = 12
ENDED = Mark(7, 7)


def write(out: Output, until: int = ITEMS) -> None:
    """Write the items that are missing; every third one fails."""
    while out.items < until:
        mark = Mark(out.items + 1, 1000 + out.items)
        if out.items % 3 == 1:
            out.failure(Failed("ValueError", "no\nluck"), {"input": "-", "line": out.items + 1}, mark)
        else:
            out.result(json.dumps("x" * out.items), mark)


@pytest.mark.parametrize("checkpoint", [0, 1, 2, 7, ITEMS])
def test_whatever_is_left_of_the_tail_a_resumed_run_completes_it(tmp_path: Path, checkpoint: int) -> None:
    whole, torn = OutputPaths.of(tmp_path / "whole.jsonl"), OutputPaths.of(tmp_path / "torn.jsonl")
    with Output(whole, HEADER) as out:
        write(out, checkpoint)
        out.sync()
        durable = (whole.results.stat().st_size, whole.failures.stat().st_size)
        write(out)
    all_results, all_failures = whole.results.read_bytes(), whole.failures.read_bytes()
    tails = ["", "\0\0\0", '{"index": 5, "resu', "[]\n", '{"index": true}\n', '{"index": 99, "result": 0}\n']
    cuts = [(len(all_results), at) for at in range(durable[1], len(all_failures) + 1)]
    cuts += [(at, len(all_failures)) for at in range(durable[0], len(all_results) + 1)]
    cuts += [
        (random.randint(durable[0], len(all_results)), random.randint(durable[1], len(all_failures)))
        for _ in range(200)
    ]
    for results_cut, failures_cut in cuts:
        torn.results.write_bytes(all_results[:results_cut] + random.choice(tails).encode())
        torn.failures.write_bytes(all_failures[:failures_cut] + random.choice(tails).encode())
        torn.journal.write_bytes(whole.journal.read_bytes())
        with Output(torn, HEADER, resume=True) as out:
            out.go_on(Mark(out.items, 0))
            kept = torn.results.read_bytes().count(b"\n"), torn.failures.read_bytes().count(b"\n")
            assert out.items == sum(kept) >= checkpoint
            assert out.failed == kept[1] == len([n for n in range(out.items) if n % 3 == 1])
            whole_results, whole_failures = (
                all_results[:results_cut].count(b"\n"),
                all_failures[:failures_cut].count(b"\n"),
            )
            assert out.items == max(
                items
                for items in range(ITEMS + 1)
                if (failed := len(range(1, items, 3))) <= whole_failures and items - failed <= whole_results
            )
            write(out)
        assert torn.results.read_bytes() == all_results
        assert torn.failures.read_bytes() == all_failures


def test_results_that_nest_deeper_than_python_recurses_are_found_again(tmp_path: Path) -> None:
    paths = OutputPaths.of(tmp_path / "out.jsonl")
    with Output(paths, HEADER) as out:
        out.result("[" * 100_000 + "]" * 100_000, Mark(1, 1))
    with Output(paths, HEADER, resume=True) as out:
        out.go_on(Mark(out.items, 0))
        assert out.items == 1


def test_the_journal_never_speaks_of_more_than_was_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each journal, as it is about to replace the last, is compared with what fsync was asked to keep."""
    paths = OutputPaths.of(tmp_path / "out.jsonl")
    synced: dict[int, int] = {}
    journals: list[Checkpoint] = []
    real_fsync, real_write = os.fsync, output.write_journal

    def fsync(descriptor: int) -> None:
        real_fsync(descriptor)
        status = os.fstat(descriptor)
        synced[status.st_ino] = status.st_size

    def write_journal(path: Path, header: dict[str, object], checkpoint: Checkpoint) -> None:
        assert synced[paths.results.stat().st_ino] == checkpoint.results_bytes
        assert synced[paths.failures.stat().st_ino] == checkpoint.failures_bytes
        journals.append(checkpoint)
        real_write(path, header, checkpoint)
        assert path.stat().st_ino in synced
        assert path.parent.stat().st_ino in synced

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(output, "write_journal", write_journal)
    monkeypatch.setattr(output, "SYNC_INTERVAL_MIN", 0.0)
    monkeypatch.setattr(output, "SYNC_SHARE_MAX", 1.0)
    with Output(paths, HEADER) as out:
        write(out)
        out.finish()
    assert [checkpoint.items for checkpoint in journals] == [*range(ITEMS + 1), ITEMS]
    assert [checkpoint.complete for checkpoint in journals] == [False] * (ITEMS + 1) + [True]


def test_a_result_is_with_the_kernel_as_soon_as_it_is_written(tmp_path: Path) -> None:
    paths = OutputPaths.of(tmp_path / "out.jsonl")
    with Output(paths, HEADER) as out:
        for items in range(1, ITEMS):
            write(out, items)
            assert (paths.results.read_bytes() + paths.failures.read_bytes()).count(b"\n") == items


def test_checkpoints_are_rare_where_the_disk_is_slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(output.time, "monotonic", lambda: now)
    syncs = []

    def fsync(descriptor: int) -> None:
        nonlocal now
        now += 0.2
        syncs.append(descriptor)

    with Output(OutputPaths.of(tmp_path / "out.jsonl"), HEADER) as out:
        monkeypatch.setattr(os, "fsync", fsync)
        began = now
        for items in range(1, 1001):
            now += 0.1
            write(out, items)
    share = len(syncs) * 0.2 / (now - began)
    assert 0.05 < share < 0.11


def test_a_full_disk_breaks_the_run_off_and_it_can_be_resumed(tmp_path: Path) -> None:
    paths = OutputPaths.of(tmp_path / "out.jsonl")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Output(paths, HEADER) as out:
        write(out, 5)
        # The next line fits in part only; SIGXFSZ is ignored by Python.
        resource.setrlimit(resource.RLIMIT_FSIZE, (paths.results.stat().st_size + 20, limits[1]))
        try:
            with pytest.raises(CommandError, match=r"^cannot write .*/out\.jsonl: File too large$") as caught:
                write(out)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert out.items == 5
    assert caught.value.exit_code == ExitCode.BROKEN_OFF
    assert not paths.results.read_bytes().endswith(b"\n")
    with Output(paths, HEADER, resume=True) as out:
        out.go_on(Mark(out.items, 0))
        assert out.items == 5
        write(out)
    assert len(lines(str(paths.results))) + len(lines(str(paths.failures))) == ITEMS


def test_skipping_finds_the_place_and_its_mark(folder: Path) -> None:
    numbers(20)
    first, second = Lines(["in.txt"]), Lines(["in.txt"])
    marks = [START, *(first.finished() for _ in first)]
    assert second.skip(15, 10, marks[10]) == marks[15]
    assert next(iter(second)) == b"15\n"
    assert Lines(["in.txt"]).skip(0, 0, START) == START
    with pytest.raises(CommandError, match="not those"):
        Lines(["in.txt"]).skip(15, 10, marks[10]._replace(crc=0))
    assert second.locate(15) == {"input": "in.txt", "line": 16}


class InProcess:
    """A pool that runs everything in the caller, and keeps what it was made and called with."""

    made: ClassVar[dict[str, object]] = {}

    def __init__(self, n: int | None, **options: object) -> None:
        self.made |= {"n": n, **options}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def processes(self) -> dict[str, object]:
        return {"supervisor": 1}

    def map(self, fn: Callable[[bytes], str], items: Iterable[bytes], **options: object) -> Iterator[object]:
        self.made |= options
        yield from map(fn, items)


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ([], {}),
        (["-n", "7"], {"n": 7}),
        (["--processes", "7"], {"n": 7}),
        (["--timeout", "1.5"], {"timeout": 1.5}),
        (["--retries", "2"], {"retries": 2, "crash_retries": 2}),
        (["--chunksize", "9"], {"chunksize": 9}),
        (["--preload", "json", "--preload", "xml.dom"], {"preload": ("json", "xml.dom")}),
    ],
)
def test_options_reach_the_pool(
    folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], options: dict[str, object]
) -> None:
    monkeypatch.setattr(InProcess, "made", {})
    monkeypatch.setattr(map_module, "ProcessWorker", InProcess)
    assert app.run(["map", "tasks:echo", numbers(3), "-o", "out.jsonl", *arguments]) == ExitCode.OK
    pool = {"n": None, "timeout": None, "retries": 0, "crash_retries": 1, "preload": ()}
    assert InProcess.made == pool | {"chunksize": None, "return_exceptions": True} | options


@pytest.mark.parametrize("kind", [SupervisorLost, StartFailed])
def test_a_pool_that_is_lost_fails_no_items(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: type[Exception]
) -> None:
    class Lost(InProcess):
        def processes(self) -> dict[str, object]:
            return {}

        def map(self, fn: Callable[[bytes], str], items: Iterable[bytes], **_: object) -> Iterator[object]:
            for number, item in enumerate(items):
                yield fn(item) if number < 3 else kind("the supervisor\nis gone")

    monkeypatch.setattr(map_module, "ProcessWorker", Lost)
    assert app.run(["map", "tasks:echo", numbers(9), "-o", "out.jsonl"]) == ExitCode.BROKEN_OFF
    assert capsys.readouterr().err == (
        "mpworker: the supervisor is gone; "
        "broken off after 3 items; the same command with --resume goes on from there\n"
    )
    assert results() == {0: "0", 1: "1", 2: "2"}
    assert Path("out.failed.jsonl").read_bytes() == b""


def test_a_message_says_the_place_in_the_input_after_a_resume_too(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Lost(InProcess):
        def processes(self) -> dict[str, object]:
            return {}

        def map(self, fn: Callable[[bytes], str], items: Iterable[bytes], **_: object) -> Iterator[object]:
            for number, item in enumerate(items):
                yield fn(item) if number < 3 else SupervisorLost("the supervisor is gone")

    Path("in.txt").write_text("a\nb\nc\nd\nhang\n")
    arguments = ["map", "tasks:hang", "in.txt", "-o", "out.jsonl"]
    with monkeypatch.context() as patch:
        patch.setattr(map_module, "ProcessWorker", Lost)
        assert app.run(arguments) == ExitCode.BROKEN_OFF
    assert run(*arguments, "--resume", "--timeout", 0.5).returncode == ExitCode.SOME_FAILED
    [failed] = lines("out.failed.jsonl")
    assert failed["index"] == 4
    assert str(failed["message"]).startswith("item 4 of map(tasks:hang) ran for over 0.5 s")


def test_options_that_the_pool_refuses_are_an_error_of_usage(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ConfigurationError("n=100000 is more than 4096")

    monkeypatch.setattr(map_module, "ProcessWorker", refuse)
    assert app.run(["map", "tasks:echo", numbers(3), "-o", "out.jsonl"]) == ExitCode.USAGE
    assert capsys.readouterr().err == "mpworker: n=100000 is more than 4096\n"
    monkeypatch.setattr(map_module, "ProcessWorker", InProcess)
    assert app.run(["map", "tasks:echo", "in.txt", "-o", "out.jsonl"]) == ExitCode.OK  # nothing is in the way


@pytest.mark.parametrize(
    ("option", "value"),
    [("-n", "999"), ("--chunksize", "99999999"), ("--timeout", "nan"), ("--timeout", "1e12"), ("--retries", "9999999")],
)
def test_an_option_out_of_its_bounds_is_refused_before_any_file_is_made(
    folder: Path, capsys: pytest.CaptureFixture[str], option: str, value: str
) -> None:
    numbers(3)
    assert app.run(["map", "tasks:echo", "in.txt", "-o", "out.jsonl", option, value]) == ExitCode.USAGE
    assert option.removeprefix("-n") in capsys.readouterr().err
    assert not list(folder.glob("out*"))


def test_an_input_that_breaks_half_way_breaks_the_run_off(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers(5)
    numbers(5, "gone.txt")
    real_open = inputs._open

    def open_(name: str) -> object:
        Path("gone.txt").unlink(missing_ok=True)
        return real_open(name)

    monkeypatch.setattr(inputs, "_open", open_)
    assert app.run(["map", "tasks:echo", "in.txt", "gone.txt", "-o", "out.jsonl", "-n", "1"]) == ExitCode.BROKEN_OFF
    assert capsys.readouterr().err == (
        "mpworker: cannot read gone.txt: No such file or directory; "
        "broken off after 5 items; the same command with --resume goes on from there\n"
    )
    assert len(results()) == 5
    assert lines("out.jsonl.state")[1]["complete"] is False


# ------------------------------------------------------------ killed for real


class Beats:
    """A FIFO in which ``tasks:beat`` leaves a byte for each item it computed."""

    def __init__(self) -> None:
        os.mkfifo("beats")
        self._descriptor = os.open("beats", os.O_RDWR)  # for writing too: no end of file between two writers

    def wait(self, count: int, process: subprocess.Popen[bytes]) -> None:
        """Wait until so many items were computed, or the process has ended."""
        pidfd = os.pidfd_open(process.pid)
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        poll.register(pidfd, select.POLLIN)
        try:
            while count > 0:
                ready = [descriptor for descriptor, _ in poll.poll(100_000)]
                assert ready, "nothing was computed"
                if self._descriptor in ready:
                    count -= len(os.read(self._descriptor, count))
                elif pidfd in ready:
                    return
        finally:
            os.close(pidfd)

    def drain(self) -> None:
        os.set_blocking(self._descriptor, False)
        try:
            while os.read(self._descriptor, 65536):
                pass
        except BlockingIOError:
            os.set_blocking(self._descriptor, True)

    def close(self) -> None:
        os.close(self._descriptor)


@pytest.fixture
def beats(folder: Path) -> Iterator[Beats]:
    beats = Beats()
    yield beats
    beats.close()


def test_killed_again_and_again_a_run_loses_nothing_and_writes_nothing_twice(beats: Beats) -> None:
    numbers(1500)
    with subprocess.Popen(command("map", "tasks:beat", "in.txt", "-o", "whole.jsonl", "-n", 2, "-q")) as whole:
        beats.wait(1500, whole)
        assert whole.wait() == ExitCode.SOME_FAILED
    kills = partial = 0
    for _ in range(60):
        arguments = ["map", "tasks:beat", "in.txt", "-o", "out.jsonl", "-n", 2, "-q", "--resume"]
        with subprocess.Popen(command(*arguments, "--chunksize", random.choice([1, 2, 5]))) as process:
            if kills < 12:
                beats.wait(random.randint(1, 150), process)
                process.kill()
            else:
                beats.wait(1500, process)
        beats.drain()
        state = lines("out.jsonl.state")[1] if Path("out.jsonl.state").exists() else {}
        if process.returncode == -signal.SIGKILL:
            kills += 1
            partial += 0 < Path("out.jsonl").stat().st_size < Path("whole.jsonl").stat().st_size
        elif kills >= 12:
            break
        if state.get("complete"):  # faster than we could kill it: it begins again
            for name in ("out.jsonl", "out.failed.jsonl", "out.jsonl.state"):
                Path(name).unlink()
    assert process.returncode == ExitCode.SOME_FAILED
    assert (kills, partial > 3) == (12, True)
    assert Path("out.jsonl").read_bytes() == Path("whole.jsonl").read_bytes()
    assert Path("out.failed.jsonl").read_bytes() == Path("whole.failed.jsonl").read_bytes()
    assert sorted([*results(), *(entry["index"] for entry in lines("out.failed.jsonl"))]) == list(range(1500))


def test_ctrl_c_leaves_an_output_to_go_on_with(beats: Beats) -> None:
    numbers(3000)
    arguments = ["map", "tasks:beat", "in.txt", "-o", "out.jsonl", "-n", 2, "--chunksize", 3]
    with subprocess.Popen(command(*arguments), stderr=subprocess.PIPE) as process:
        beats.wait(100, process)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=100)
    assert process.returncode == ExitCode.INTERRUPTED
    assert said.count(b"\n") == 1
    assert said.startswith(b"mpworker: interrupted after ")
    assert said.endswith(b" items; the same command with --resume goes on from there\n")
    before = Path("out.jsonl").read_bytes()
    indexes = [*results(), *(entry["index"] for entry in lines("out.failed.jsonl"))]
    assert sorted(indexes, key=int) == list(range(len(indexes)))  # type: ignore[call-overload]
    beats.drain()
    with subprocess.Popen(command(*arguments, "--resume", "-q")) as process:
        beats.wait(3000 - len(indexes), process)
    assert process.returncode == ExitCode.SOME_FAILED
    assert Path("out.jsonl").read_bytes().startswith(before)
    assert list(results()) == list(range(1, 3000, 2))


def test_an_endless_input_takes_bounded_memory(beats: Beats) -> None:
    endless = "import sys\nwhile True: sys.stdout.buffer.write(b'x' * 65_535 + b'\\n')"
    arguments = ["map", "tasks:beat", "-", "-o", "out.jsonl", "-n", 2]
    with (
        subprocess.Popen([sys.executable, "-c", endless], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as source,
        subprocess.Popen(command(*arguments), stdin=source.stdout, stderr=subprocess.PIPE) as process,
    ):
        assert source.stdout
        source.stdout.close()
        beats.wait(5_000, process)  # 330 MB
        status = dict(line.split(":", 1) for line in Path(f"/proc/{process.pid}/status").read_text().splitlines())
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=100)
        source.kill()
    assert process.returncode == ExitCode.INTERRUPTED, said
    assert int(status["VmHWM"].split()[0]) < 200_000
