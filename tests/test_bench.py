"""What the benchmarks compute from what they measure, and how two runs are compared. No clock, no process."""

import dataclasses
import itertools
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mpworker.bench import arrivals, backlog, comparing, metg, page, run, tasks, words
from mpworker.bench.arrivals import Arrival
from mpworker.bench.measure import Benchmark, Measure, Round, Settings, Target, growth, ratios_of, values_of
from mpworker.bench.metg import Try
from mpworker.bench.rounds import Taken
from mpworker.bench.run import Run
from mpworker.errors import ConfigurationError

MACHINE = {"cores": 2, "cpu": "c", "architecture": "a", "kernel": "k", "python": "p", "memory": "m", "mpworker": "0",
           "peers": {"loky": "3"}, "load": 0.5}  # fmt: skip
RATE = Measure("tasks", "/s", higher_is_better=True, targets=(Target("mpworker", 2.0, "Pool"),))
TIME = Measure("time", "ms", targets=(Target("mpworker", 20.0), Target("mpworker", 1.0, "ray")))


def ran(rounds: list[Round], *measures: Measure, **more: Any) -> Run:
    return Run(MACHINE, Settings(), {"b": Taken(Benchmark("it", measures, **more), rounds)}, ["ray"], began=0.0)


def rounds_of(*values: float, pool: float = 10.0) -> list[Round]:
    return [{"mpworker": {"tasks": value}, "Pool": {"tasks": pool}} for value in values]


def test_a_slow_contender_gets_no_more_tasks_than_it_does_in_the_time() -> None:
    settings = Settings(n=2, scale=0.5)
    assert settings.fit(20_000, 1e6, 2.0) == 10_000
    assert settings.fit(20_000, 600.0, 2.0) == 1_200
    assert settings.fit(20_000, 0.1, 2.0) == 8


def test_rounds_in_which_a_contender_has_nothing_say_nothing_of_it() -> None:
    rounds: list[Round] = [{"a": {"x": 4.0}}, {"a": {"x": 6.0}, "b": {"x": 2.0}}, {"b": {"x": 1.0}}, {"a": {}, "b": {}}]
    assert values_of(rounds, "a", "x") == [4.0, 6.0]
    assert ratios_of(rounds, "a", "b", "x") == [3.0]


def test_growth_is_of_the_end_of_a_curve() -> None:
    assert growth([9.0, 2.0, 2.0, 3.0]) == 1.5
    assert growth([9.0, 3.0, 2.0, 1.0]) < 1


def test_each_goal_is_a_row_with_what_was_measured() -> None:
    rounds: list[Round] = [{"mpworker": {"tasks": t, "time": 30.0}, "Pool": {"tasks": 10.0}} for t in (19, 21, 40)]
    goals = ran(rounds, RATE, TIME).goals()
    assert [words.goal_row(each) for each in goals] == [
        ("b", "tasks: at least 2 times Pool's", "2.10", "2.00 - 3.05", "met"),
        ("b", "time: at most 20 ms", "30 ms", "30 - 30", "NOT MET"),
        ("b", "time: at most 1 times ray's", "-", "", "not measured"),
    ]
    scaled = dataclasses.replace(ran(rounds, RATE, TIME), settings=Settings(scale=0.5))
    assert [words.goal_row(each)[-1] for each in scaled.goals()] == ["not judged", "not judged", "not measured"]
    assert "no goal is judged" in " ".join(words.intro(scaled))


# METG


def test_the_speed_of_work_is_that_of_a_core_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(0.0, 0.5)
    monkeypatch.setattr(tasks.time, "thread_time", lambda: next(clock))
    assert tasks.turns_per_second() == 200_000.0


def machine(overhead: float, cores: int = 2) -> Callable[[float], Try]:
    """A pool that loses so many seconds of a core to each task, whatever its size."""
    return lambda size: Try(size + overhead, size / (size + overhead))


@pytest.mark.parametrize("overhead", [3e-6, 100e-6, 5e-3])
def test_metg_is_the_granularity_at_which_the_efficiency_is_crossed(overhead: float) -> None:
    tries = metg.curve(machine(overhead))
    # Half useful is a task as long as the overhead; a task of nine times of it is useful to nine tenths.
    assert metg.metg(tries, 0.5) == pytest.approx(2 * overhead, rel=0.06)
    assert metg.metg(tries, 0.9) == pytest.approx(10 * overhead, rel=0.06)


def test_sizes_are_tried_no_further_than_is_needed() -> None:
    tried: list[float] = []

    def attempt(size: float) -> Try:
        tried.append(size)
        return machine(100e-6)(size)

    metg.curve(attempt)
    assert tried == [0.001, 0.0005, 0.00025, 0.000125, 0.0000625]


def test_one_disturbed_try_does_not_count() -> None:
    assert metg.median([Try(1.0, 0.9), Try(9.0, 0.1), Try(1.1, 0.8)]) == Try(1.1, 0.8)


def test_a_pool_that_is_never_that_efficient_has_no_metg() -> None:
    tries = metg.curve(lambda size: Try(2 * size, 0.6))
    assert metg.metg(tries, 0.9) is None
    assert metg.metg(tries, 0.5) == tries[-1].granularity  # of the smallest task there is
    assert tries[-1].granularity < 2e-6


def test_a_dip_at_a_larger_size_ends_the_range_that_counts() -> None:
    tries = [Try(8.0, 0.95), Try(4.0, 0.85), Try(2.0, 0.95), Try(1.0, 0.4)]
    assert metg.metg(tries, 0.9) == pytest.approx((8.0 * 4.0) ** 0.5)


# Open loop


class World:
    """A clock that a sleep moves, and a pool whose `submit` takes a while and whose tasks take their time."""

    def __init__(self, submit_takes: float) -> None:
        self.now = 50.0
        self.submit_takes = submit_takes
        self.waiting: list[tuple[float, Callable[[], None]]] = []

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        end = self.now + seconds
        for when, done in sorted(self.waiting, key=lambda each: each[0]):
            if when <= end:
                self.now = max(self.now, when)
                self.waiting.remove((when, done))
                done()
        self.now = end

    def submit_then(self, done: Callable[[], None], _work: object, turns: int) -> None:
        self.sleep(self.submit_takes)
        self.waiting.append((self.now + turns, done))


def drive(world: World, loads: list[Arrival]) -> list[float]:
    return arrivals.drive(world.submit_then, loads, int, world.clock, world.sleep)


def test_latency_counts_from_when_a_task_was_meant_to_come() -> None:
    # Each submission holds up the loop for 3 s, and a task is due every second: the third one is 6 s late.
    world = World(submit_takes=3.0)
    assert sorted(drive(world, [Arrival(0.0, 5.0), Arrival(1.0, 5.0), Arrival(2.0, 5.0)])) == [8.0, 10.0, 12.0]


def test_no_task_comes_before_it_is_due() -> None:
    assert sorted(drive(World(0.0), [Arrival(1.0, 2.0), Arrival(9.0, 4.0)])) == [2.0, 4.0]


def test_tasks_that_never_end_are_told() -> None:
    world = World(0.0)
    world.submit_then = lambda *_: None  # type: ignore[method-assign]
    with pytest.raises(TimeoutError, match="2 of 2 tasks have not ended"):
        drive(world, [Arrival(0.0, 1.0), Arrival(1.0, 1.0)])


def test_what_no_pool_can_avoid_is_first_come_first_served() -> None:
    loads = [Arrival(0.0, 4.0), Arrival(1.0, 1.0), Arrival(1.5, 1.0), Arrival(9.0, 1.0)]
    assert arrivals.without_overhead(loads, 1) == [4.0, 4.0, 4.5, 1.0]
    assert arrivals.without_overhead(loads, 2) == [4.0, 1.0, 1.5, 1.0]


@pytest.mark.parametrize("utilisation", arrivals.UTILISATIONS)
def test_the_load_is_the_same_each_time_and_of_that_size(utilisation: float) -> None:
    loads = arrivals.load(utilisation, 2, 60.0)
    assert loads == arrivals.load(utilisation, 2, 60.0)
    assert sum(each.service for each in loads) / (2 * 60.0) == pytest.approx(utilisation, rel=0.1)


# Backlog


def test_windows_are_of_a_hundred_results_and_p99_by_rank() -> None:
    taken: list[int] = []
    times = backlog.windows(range(250), taken.append)
    assert len(times) == 2
    assert taken == list(range(250))
    assert backlog.p99([1.0] * 98 + [7.0, 9.0]) == 7.0
    assert backlog.p99([3.0]) == 3.0


def test_a_percentile_is_of_as_many_windows_however_many_there_are() -> None:
    quiet, noisy = [1.0] * 1_000, [1.0] * 900 + [50.0] * 100
    assert backlog.p99_of_stretches(noisy) == 50.0
    assert backlog.p99_of_stretches([*quiet, *noisy, *quiet]) == 1.0  # a neighbour's burst
    assert backlog.p99_of_stretches([*noisy, *quiet, *noisy]) == 50.0
    assert backlog.p99_of_stretches([*quiet, *[9.0] * 999]) == 9.0  # one stretch, with what is left over
    assert backlog.p99_of_stretches([*quiet, *[9.0] * 1_000]) == 5.0
    assert backlog.p99_of_stretches([3.0]) == 3.0


def test_a_small_size_is_repeated_until_a_percentile_has_enough_windows() -> None:
    def repeat(tasks: int, seconds: float, windows: int, scale: float = 1.0) -> tuple[list[int], dict[str, float]]:
        taken: list[int] = []

        def once() -> backlog.Sample:
            taken.append(len(taken) + 1)
            times = [1e-6 * len(taken)] * windows
            return backlog.Sample(tasks, seconds, 2 * seconds, times, memory=10.0 * len(taken))

        return taken, backlog.repeated(once, Settings(scale=scale), memory_of=0)

    taken, found = repeat(1_000, 0.001, windows=10)
    assert len(taken) == 100
    assert found == {
        "time": pytest.approx(1.0),
        "cpu": pytest.approx(2.0),
        "p99": pytest.approx(99.0),  # of the thousand windows, and not the longest of ten
        "memory": 10.0,  # later ones use again what the first one has left
    }
    assert len(repeat(1_000, 0.001, windows=10, scale=0.1)[0]) == 10
    assert len(repeat(1_000_000, 20.0, windows=10)[0]) == 1
    assert len(repeat(1_000, 0.5, windows=10)[0]) == 10  # a slow pool has five seconds
    assert repeat(50, 0.005, windows=0)[1]["p99"] == pytest.approx(100.0)  # of all together, being too few


def test_growth_is_told_of_a_whole_curve_alone() -> None:
    points = [{"time": 4.0, "memory": 0.0}, {"time": 4.0, "memory": 100.0}, {"time": 6.0, "memory": 110.0}]
    assert backlog.grown(points, 3) == {"time, growth": 1.5, "memory, growth": pytest.approx(1.1)}
    assert backlog.grown(points, 4) == {}


# Comparing


def test_the_test_is_exact() -> None:
    for m, n in ((3, 3), (2, 5), (4, 3)):
        values = list(range(m + n))
        chosen = list(itertools.combinations(values, m))

        def wins(one: tuple[int, ...], values: list[int] = values) -> int:
            return sum(a > b for a in one for b in values if b not in one)

        for one in chosen:
            other = [value for value in values if value not in one]
            least = min(wins(one), m * n - wins(one))
            expected = min(1.0, 2 * sum(wins(each) <= least for each in chosen) / len(chosen))
            assert comparing.mann_whitney(one, other) == pytest.approx(expected)


def test_equal_values_are_no_evidence() -> None:
    assert comparing.mann_whitney([5.0] * 9, [5.0] * 9) == 1.0


def moves(before: list[Round], now: list[Round], *measures: Measure, **more: Any) -> list[comparing.Move]:
    old = json.loads(json.dumps(run.as_json(ran(before, *measures, **more))))
    return comparing.compared(old, ran(now, *measures, **more))


def test_what_has_moved_is_told_and_to_which_side() -> None:
    before, now = rounds_of(100, 101, 102, 103, 104), rounds_of(80, 81, 82, 83, 84)
    found = {(each.figure, each.contender): each for each in moves(before, now, RATE)}
    assert found["tasks", "mpworker"].moved
    assert not found["tasks", "mpworker"].better
    assert found["tasks", "Pool"].moved is False
    assert found["tasks", "mpworker / Pool"].moved
    assert words.move_row(found["tasks", "mpworker"])[-2] == "-20% WORSE"


def test_a_machine_that_is_slower_moves_no_ratio() -> None:
    before = rounds_of(100, 101, 102, 103, 104, pool=10.0)
    now = [{name: {"tasks": each["tasks"] / 2} for name, each in taken.items()} for taken in before]
    assert {each.contender: each.moved for each in moves(before, now, RATE)} == {
        "mpworker": True,
        "Pool": True,
        "mpworker / Pool": False,
    }


def test_noise_is_no_move() -> None:
    rng = random.Random(3)
    told = 0
    for _ in range(200):
        sides = [rounds_of(*(rng.lognormvariate(0.0, 0.3) for _ in range(9))) for _ in range(2)]
        told += moves(*sides, RATE)[0].moved is True
    assert told <= 4  # of 200, at 1 %


def test_overlapping_quartiles_are_no_move_however_sure_the_test_is() -> None:
    before = rounds_of(*range(100, 140))
    now = rounds_of(*range(115, 155))
    move = moves(before, now, RATE)[0]
    assert move.p < comparing.LEVEL
    assert move.moved is False


def test_few_rounds_are_told_as_such() -> None:
    before, now = rounds_of(1, 2, 3, 4), rounds_of(101, 102, 103, 104)
    found = moves(before, now, RATE)
    assert {each.moved for each in found} == {None}
    assert (
        comparing.summary(found)
        == "0 figures and ratios compared, 0 have moved beyond noise; 3 have too few rounds to tell."
    )


def test_facts_are_not_compared() -> None:
    assert moves(rounds_of(1, 2), rounds_of(1, 2), Measure("tasks", "items", fact=True)) == []


def test_another_machine_is_told() -> None:
    old = run.as_json(ran(rounds_of(1.0), RATE))
    now = ran(rounds_of(1.0), RATE)
    assert comparing.differences(old, now) == []
    old["machine"] = MACHINE | {"cores": 64}
    old["settings"]["scale"] = 0.5
    assert comparing.differences(old, now) == [
        "The runs are of different machines or interpreters: cores was 64 and is 2.",
        "The runs are of different size: scale was 0.5 and is 1.0.",
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "cannot be read: No such file or directory"),
        ("{", "is no JSON: "),
        ("[1]", "is no run of benchmarks, as --json writes it"),
        ('{"benchmarks": {}}', "is no run of benchmarks, as --json writes it"),
        ('{"schema": 0, "benchmarks": {}}', "has schema 0; this version compares with schema 1 alone"),
    ],
)
def test_what_is_no_run_of_this_schema_is_refused(tmp_path: Path, text: str | None, says: str) -> None:
    path = tmp_path / "old.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigurationError, match=re.escape(says)):
        run.read(path)


def test_a_run_is_read_as_it_was_written(tmp_path: Path) -> None:
    whole = ran(rounds_of(1.0, 2.0), RATE)
    run.write(whole, tmp_path / "run.json")
    found = run.read(tmp_path / "run.json")
    assert found == run.as_json(whole)
    assert found["benchmarks"]["b"]["rounds"] == whole.taken["b"].rounds
    assert found["began"] == "1970-01-01T00:00:00Z"


# The page


def test_the_page_has_goals_plots_curves_and_remarks() -> None:
    curve = [Measure(f"time, {x}", "us", series="time", x=x, x_is="tasks") for x in (10.0, 100.0)]
    rounds: list[Round] = [
        {"mpworker": {"tasks": 5.0, "time, 10.0": 1.0, "time, 100.0": 2.0}, "<Pool>": {"tasks": 1.0, "time, 10.0": 3.0}}
    ]
    whole = ran(rounds, RATE, *curve)
    whole.taken["b"].failed["loky"] = "exit code 1: <b>"
    html = page.document(whole, run.as_json(whole), []).html()
    assert html.count("<svg") == 2
    assert "&lt;Pool&gt;" in html
    assert "loky FAILED: exit code 1: &lt;b&gt;" in html
    assert "Not installed: ray." in html
    assert "Compared with the run of 1970-01-01T00:00:00Z." in html
    assert not re.search(r"<script|(src|href)=", html)


def test_bars_that_differ_by_far_are_drawn_on_decades() -> None:
    for other, far in ((2.0, False), (1e3, True)):
        taken = Taken(Benchmark("it", (RATE,)), [{"mpworker": {"tasks": 1.0}, "Pool": {"tasks": other}}])
        plot = page._bars("b", RATE, taken)
        assert plot is not None
        assert plot.log_y is far
        assert list(plot.series) == ["mpworker", "Pool"]


def test_what_nobody_measured_has_no_plot() -> None:
    html = page.document(ran([{"mpworker": {}}], RATE)).html()
    assert "<svg" not in html
