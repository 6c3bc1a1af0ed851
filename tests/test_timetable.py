"""Which recurring task runs when, under virtual time: two clocks that go together until somebody sets one."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpworker.cron import read_spec
from mpworker.supervisor import timetable
from mpworker.supervisor.schedule import Calendar, Every
from mpworker.supervisor.timetable import Entry, Now, Rules, Start, Timetable

FIRST_KEY = 1_000
OK, BAD = 0, 1
NOON = int(datetime(2026, 6, 1, 12, tzinfo=UTC).timestamp())
MINUTE, HOUR, DAY = 60, 3_600, 86_400


@dataclass
class World:
    """A timetable, its clocks, and what it has started."""

    wall: float = NOON
    monotonic: float = 5_000.0
    table: Timetable = field(default_factory=lambda: Timetable(FIRST_KEY))
    started: list[Start] = field(default_factory=list)

    @property
    def now(self) -> Now:
        return Now(self.wall, self.monotonic)

    def add(
        self,
        line: str,
        *,
        overlap: str = "skip",
        misfire: str = "once",
        grace: float = 60.0,
        zone: str = "UTC",
        name: str = "it",
    ) -> Entry:
        due = read_spec(line)
        schedule = Every(due["every"], self.monotonic) if "every" in due else Calendar(**due, zone=ZoneInfo(zone))
        self.table.add(name, name, schedule, Rules(overlap, misfire, grace), self.now)
        return self.table.entries[name]

    def look(self) -> list[int]:
        """The keys of what begins."""
        found = self.table.look(self.now)
        self.started += found
        return [start.key for start in found]

    def sleep(self, seconds: float, *, end: bool = True) -> None:
        """Time goes on, and the loop looks when it is to; with `end` each run ends at once."""
        until = self.monotonic + seconds
        while self.table.look_at is not None and self.table.look_at <= until:
            self.wall += max(0.0, self.table.look_at - self.monotonic)
            self.monotonic = max(self.monotonic, self.table.look_at)
            for key in self.look():
                if end:
                    self.end(key)
        self.wall += until - self.monotonic
        self.monotonic = until

    def away(self, seconds: float) -> None:
        """The supervisor stands still."""
        self.wall += seconds
        self.monotonic += seconds

    def end(self, key: int, status: int = OK, report: bytes = b"") -> None:
        self.table.ended(key, status, report, self.now)


def scheduled(entry: Entry) -> list[float]:
    """When its runs were due, in seconds from noon."""
    return [run.scheduled_at - NOON for run in entry.history]


# ------------------------------------------------------------ in time


def test_a_line_and_an_interval_run_when_they_are_due() -> None:
    world = World()
    line = world.add("*/10 * * * *", name="line")
    interval = world.add("@every 25s", name="interval")
    world.sleep(30 * MINUTE)
    assert scheduled(line) == [10 * MINUTE, 20 * MINUTE, 30 * MINUTE]
    assert scheduled(interval) == [25 * turn for turn in range(1, 73)]
    assert [run.started_at for run in line.history] == [run.scheduled_at for run in line.history]
    assert len({start.key for start in world.started}) == len(world.started) == 75
    assert {start.work for start in world.started} == {"line", "interval"}
    assert min(start.key for start in world.started) == FIRST_KEY


def test_nothing_is_armed_for_longer_than_the_clock_may_be_trusted() -> None:
    world = World()
    assert world.table.look_at is None
    world.add("@every 2h", name="interval")
    assert world.table.look_at == world.monotonic + 2 * HOUR  # this clock is set by nobody
    world.add("@monthly", name="line")
    assert world.table.look_at == world.monotonic + timetable.LOOK_EVERY <= world.monotonic + MINUTE
    world.sleep(100)
    assert world.table.look_at == world.monotonic + 20
    world.table.remove("line", world.now)
    world.table.pause("interval", world.now)
    assert world.table.look_at is None


def test_what_is_told_of_a_run() -> None:
    world = World()
    entry = world.add("@every 10s")
    world.sleep(10, end=False)
    (run,) = entry.history
    assert (run.scheduled_at, run.started_at, run.ended_at, run.status, run.report) == (
        *[NOON + 10] * 2,
        None,
        None,
        None,
    )
    assert entry.running is run
    world.away(4)
    world.end(run.key, BAD, b"why")
    assert (run.ended_at, run.status, run.report) == (NOON + 14, BAD, b"why")
    assert (entry.running, entry.runs, world.table.unfinished()) == (None, 1, False)
    world.end(run.key, OK)  # told twice
    world.end(7, OK)  # nobody's
    assert run.status == BAD


def test_when_it_is_due_next_is_told_by_the_wall_clock() -> None:
    world = World()
    line, interval = world.add("0 13 * * *", name="line"), world.add("@every 10s", name="interval")
    never = world.add("0 0 29 2 MON#5", name="never")
    never.due = None
    assert [world.table.next_at(entry, world.now) for entry in (line, interval, never)] == [
        NOON + HOUR,
        NOON + 10,
        None,
    ]
    world.wall += 100
    assert world.table.next_at(interval, world.now) == NOON + 110
    world.table.pause("line", world.now)
    assert world.table.next_at(line, world.now) is None


# ------------------------------------------------------------ overlap


def test_what_is_due_while_a_run_is_unfinished_is_left_out_and_counted() -> None:
    world = World()
    entry = world.add("@every 10s")
    world.sleep(35, end=False)
    assert (scheduled(entry), entry.skipped, len(entry.waiting)) == ([10], 2, 0)
    world.end(entry.history[0].key)
    world.sleep(10, end=False)
    assert (scheduled(entry), entry.skipped) == ([10, 40], 2)


def test_or_one_run_waits_behind_it() -> None:
    world = World()
    entry = world.add("@every 10s", overlap="queue")
    world.sleep(45, end=False)
    assert (scheduled(entry), entry.skipped, list(entry.waiting)) == ([10], 2, [(NOON + 20, False)])
    world.end(entry.history[0].key)
    assert world.table.look_at == world.monotonic
    assert world.table.unfinished()
    world.sleep(0, end=False)
    assert (scheduled(entry), len(entry.waiting)) == ([10, 20], 0)
    assert entry.history[1].started_at == NOON + 45


def test_two_that_are_due_at_one_look() -> None:
    for overlap, waiting, skipped in (("skip", 0, 2), ("queue", 1, 1)):
        world = World()
        entry = world.add("@every 10s", overlap=overlap)
        world.away(30)
        world.look()
        assert (scheduled(entry), len(entry.waiting), entry.skipped, entry.missed) == ([10], waiting, skipped, 0)


# ------------------------------------------------------------ missed


def test_late_by_no_more_than_the_grace_is_in_time() -> None:
    for late, expected in ((60, [10]), (60.5, [])):
        world = World()
        entry = world.add("@every 10s", misfire="skip")
        world.away(10 + late)
        world.look()
        assert scheduled(entry)[:1] == (expected or [20])
        assert entry.missed == (not expected)
    world = World()
    entry = world.add("0 13 * * *", misfire="skip", grace=0.0)
    world.away(HOUR)
    world.look()
    assert scheduled(entry) == [HOUR]


@pytest.mark.parametrize("line", ["@every 1h", "0 * * * *"])
@pytest.mark.parametrize(
    ("misfire", "made_up", "missed"),
    [("skip", [], 5), ("once", [HOUR], 4), ("all", [HOUR * n for n in range(1, 6)], 0)],
)
def test_what_was_missed(line: str, misfire: str, made_up: list[float], missed: int) -> None:
    world = World()
    entry = world.add(line, misfire=misfire)
    world.away(5.5 * HOUR)
    world.sleep(1)
    assert (scheduled(entry), entry.missed, entry.skipped) == (made_up, missed, 0)
    world.sleep(HOUR)
    assert scheduled(entry) == [*made_up, 6 * HOUR]


def test_a_machine_that_slept_is_seen_by_the_wall_clock_alone() -> None:
    world = World()
    entry = world.add("0 * * * *")
    interval = world.add("@every 1h", name="interval")
    world.wall += 5.5 * HOUR  # the other one stands still in a suspended machine
    world.sleep(timetable.LOOK_EVERY)
    assert (scheduled(entry), entry.missed) == ([HOUR], 4)
    assert (interval.runs, interval.missed) == (0, 0)


def test_runs_that_make_up_wait_for_each_other_whatever_is_said_of_overlap() -> None:
    for overlap, skipped, ordinary in (("skip", 2, []), ("queue", 1, [(NOON + 4 * HOUR, False)])):
        world = World()
        entry = world.add("0 * * * *", misfire="all", overlap=overlap)
        world.away(3.5 * HOUR)
        world.sleep(2 * HOUR, end=False)
        waiting = [(NOON + 2 * HOUR, True), (NOON + 3 * HOUR, True)]
        assert (scheduled(entry), list(entry.waiting), entry.skipped) == ([HOUR], [*waiting, *ordinary], skipped)
        world.end(entry.history[-1].key)
        world.sleep(1)
        assert scheduled(entry) == [HOUR, 2 * HOUR, 3 * HOUR, *[at - NOON for at, _ in ordinary]]


def test_one_run_makes_up_also_for_what_is_missed_until_it_begins() -> None:
    world = World()
    entry = world.add("0 * * * *", misfire="once")
    world.sleep(HOUR, end=False)
    for _ in range(2):
        world.away(2.5 * HOUR)
        world.sleep(1, end=False)
    assert (scheduled(entry), list(entry.waiting), entry.missed) == ([HOUR], [(NOON + 2 * HOUR, True)], 3)


def test_no_more_is_made_up_for_than_the_bound_nor_counted() -> None:
    world = World()
    entry = world.add("@every 1s", misfire="all", grace=0.0)
    world.away(150.5)
    world.look()
    assert (entry.runs, len(entry.waiting), entry.missed) == (1, timetable.MADE_UP_MAX - 1, 50)
    world.away(10)
    world.look()
    assert (len(entry.waiting), entry.missed) == (timetable.MADE_UP_MAX, 59)
    world = World()
    entry = world.add("@every 1s", misfire="skip")
    world.away(DAY)
    world.look()
    assert entry.missed == timetable.COUNTED_MAX
    assert scheduled(entry) == [DAY - MINUTE]
    assert entry.due == world.monotonic + 1


# ------------------------------------------------------------ a clock that is set


def test_a_clock_that_is_set_back_runs_nothing_twice_that_has_its_time_of_the_day() -> None:
    world = World()
    entry = world.add("30 12 * * *")
    world.sleep(31 * MINUTE)
    world.wall -= 20 * MINUTE
    world.sleep(HOUR)
    assert scheduled(entry) == [30 * MINUTE]
    assert entry.due == NOON + DAY + 30 * MINUTE


def test_what_follows_the_clock_goes_on_after_a_step_back() -> None:
    world = World()
    entry = world.add("*/10 * * * *")
    world.sleep(31 * MINUTE)
    world.wall -= 15 * MINUTE
    world.sleep(20 * MINUTE)
    assert scheduled(entry) == [each * MINUTE for each in (10, 20, 30, 20, 30)]


def test_nothing_is_left_out_between_a_step_back_and_the_next_look() -> None:
    world = World()
    entry = world.add("*/10 * * * *")
    world.sleep(11 * MINUTE + 5)
    world.wall -= 70  # to 12:09:55, and the next look comes at 12:10:20
    world.sleep(MINUTE)
    assert scheduled(entry) == [10 * MINUTE, 10 * MINUTE]


def test_a_step_back_while_nothing_is_due_is_none_for_what_comes_later() -> None:
    for again in ("resume", "add"):
        world = World()
        entry = world.add("*/10 * * * *")
        world.look()
        world.table.pause("it", world.now)
        world.wall -= DAY
        world.sleep(19 * MINUTE + 59)
        if again == "resume":
            world.table.resume("it", world.now)
        else:
            entry = world.add("*/10 * * * *", name="new")
        world.away(1.5)
        world.sleep(0)
        assert scheduled(entry) == [20 * MINUTE - DAY]


def test_a_correction_of_the_clock_is_no_step_back() -> None:
    world = World()
    entry = world.add("*/10 * * * *")
    world.sleep(10 * MINUTE)
    world.wall -= 1
    world.sleep(10 * MINUTE)
    assert scheduled(entry) == [10 * MINUTE]
    world.sleep(1)
    assert scheduled(entry) == [10 * MINUTE, 20 * MINUTE]


def test_a_clock_that_was_years_ahead_holds_nothing_up() -> None:
    world = World()
    entry = world.add("30 12 * * *", misfire="skip")
    world.wall += 1_000 * DAY
    world.sleep(MINUTE)
    assert entry.due == NOON + 1_000 * DAY + 30 * MINUTE
    world.wall -= 1_000 * DAY
    world.sleep(MINUTE)
    assert entry.due == NOON + 30 * MINUTE
    world.sleep(HOUR)
    assert scheduled(entry) == [30 * MINUTE]


def test_no_interval_goes_by_the_wall_clock() -> None:
    world = World()
    entry = world.add("@every 10s")
    for step in (DAY, -7 * DAY, 5):
        world.wall += step
        world.sleep(10)
    assert (entry.runs, entry.missed, entry.skipped) == (3, 0, 0)


# ------------------------------------------------------------ what is asked of it


def test_a_pause_is_no_time_that_was_missed() -> None:
    world = World()
    entry = world.add("*/10 * * * *", overlap="queue")
    world.add("@every 1m", name="other")  # for which the loop looks
    world.sleep(20 * MINUTE, end=False)
    assert len(entry.waiting) == 1
    world.table.pause("it", world.now)
    assert (len(entry.waiting), entry.skipped) == (0, 1)
    world.end(entry.history[0].key)
    world.sleep(2 * HOUR)
    world.table.resume("it", world.now)
    assert scheduled(entry) == [10 * MINUTE]
    world.sleep(10 * MINUTE)
    assert (scheduled(entry), entry.missed) == ([10 * MINUTE, 150 * MINUTE], 0)
    due = entry.due
    world.away(20 * MINUTE)
    world.table.resume("it", world.now)  # it is not paused: what is overdue stays so
    assert entry.due == due


def test_an_interval_keeps_its_step_over_a_pause() -> None:
    world = World()
    entry = world.add("@every 10s")
    world.table.pause("it", world.now)
    world.away(25)
    world.table.resume("it", world.now)
    world.sleep(10)
    assert scheduled(entry) == [30]


def test_run_now() -> None:
    world = World()
    entry = world.add("@daily")
    world.away(5)
    assert world.table.run_now("it", world.now)
    assert world.table.look_at == world.monotonic
    assert not world.table.run_now("it", world.now)
    (key,) = world.look()
    assert (scheduled(entry), entry.skipped) == ([5], 1)
    world.end(key)
    world.table.pause("it", world.now)
    assert world.table.run_now("it", world.now)
    assert len(world.look()) == 1
    waiting = world.add("@daily", overlap="queue", name="other")
    assert [world.table.run_now("other", world.now) for _ in range(3)] == [True, True, False]
    assert len(waiting.waiting) == 1


def test_what_is_removed_runs_to_its_end_and_its_name_is_free() -> None:
    world = World()
    world.add("@every 10s", overlap="queue")
    world.sleep(20, end=False)
    world.table.remove("it", world.now)
    assert world.table.look_at is None
    again = world.add("@every 10s")
    world.end(FIRST_KEY)
    assert (again.runs, world.look(), world.table.unfinished()) == (0, [], False)
    world.sleep(10)
    assert scheduled(again) == [30]


def test_a_name_that_is_given_again_runs_once_at_a_time() -> None:
    world = World()
    world.add("@every 10s")
    world.sleep(10, end=False)
    for _ in range(3):  # the run is that of whoever has the name
        world.table.remove("it", world.now)
        again = world.add("@every 10s", overlap="queue")
    world.sleep(10, end=False)
    assert (again.runs, len(again.waiting), len(world.started)) == (0, 1, 1)
    world.end(FIRST_KEY)
    assert len(world.look()) == 1
    world.table.remove("it", world.now)
    world.end(FIRST_KEY + 1)
    assert not world.table._removed
    assert not world.table.unfinished()


@pytest.mark.parametrize("waiting", [True, False])
def test_the_end(waiting: bool) -> None:
    world = World()
    entry = world.add("@every 10s", overlap="queue")
    world.sleep(20, end=False)
    world.table.close(world.now, waiting)
    world.away(HOUR)
    assert world.look() == []
    assert not world.table.run_now("it", world.now)
    assert world.table.unfinished()
    world.end(FIRST_KEY)
    assert world.table.unfinished() == waiting
    world.sleep(HOUR)
    assert scheduled(entry) == ([10, 20] if waiting else [10])
    assert (world.table.unfinished(), world.table.look_at) == (False, None)
    assert world.table.next_at(entry, world.now) is None


def test_the_history_is_bounded() -> None:
    world = World()
    entry = world.add("@every 10s")
    for _ in range(120):
        world.sleep(10, end=False)
        world.end(entry.history[-1].key, BAD, b"x" * 1_000)
    assert (entry.runs, len(entry.history)) == (120, timetable.HISTORY_MAX)
    assert scheduled(entry)[-1] == 1_200
    kept = [run.report is not None for run in entry.history]
    assert kept == [False] * 35 + [True] * 65  # 64 KiB, the newest
    world.sleep(10, end=False)
    world.end(entry.history[-1].key, BAD, b"x" * (timetable.REPORT_BYTES + 1))
    assert not any(run.report for run in entry.history)


# ------------------------------------------------------------ all together

MOVES = st.lists(
    st.one_of(
        st.tuples(st.just("sleep"), st.floats(0, 200)),
        st.tuples(st.just("away"), st.floats(0, 1_000)),
        st.tuples(st.just("ahead"), st.floats(0, 1_000)),
        st.tuples(st.just("end"), st.just(0)),
    ),
    max_size=30,
)


@settings(deadline=None)
@given(
    line=st.sampled_from(["@every 7s", "*/10 * * * * *", "* * * * *", "*/5 * * * *"]),
    overlap=st.sampled_from(["skip", "queue"]),
    misfire=st.sampled_from(["skip", "once", "all"]),
    grace=st.sampled_from([0.0, 30.0, 60.0]),
    moves=MOVES,
)
def test_each_time_has_one_fate(
    line: str, overlap: str, misfire: str, grace: float, moves: list[tuple[str, float]]
) -> None:
    world = World()
    entry = world.add(line, overlap=overlap, misfire=misfire, grace=grace)
    at, times = entry.due, 0
    for move, value in moves:
        if move == "sleep":
            world.sleep(value, end=False)
        elif move == "away":
            world.away(value)
        elif move == "ahead":
            world.wall += value
        elif entry.running is not None:
            world.end(entry.running.key)
        world.look()
        while at is not None and at <= (world.monotonic if entry.schedule.elapsed else world.wall):
            at, times = entry.schedule.next_after(at), times + 1
        assert entry.due == at
        assert times == entry.runs + len(entry.waiting) + entry.skipped + entry.missed
        unfinished = [run for run in entry.history if run.ended_at is None]
        assert unfinished == [entry.running] * (entry.running is not None)
        assert entry.runs == len(world.started)
        assert sum(not making_up for _, making_up in entry.waiting) <= (overlap == "queue")
        making_up = sum(making_up for _, making_up in entry.waiting)
        assert making_up <= {"skip": 0, "once": 1, "all": timetable.MADE_UP_MAX}[misfire]
        assert entry.running is not None or not entry.waiting
    starts = [run.scheduled_at for run in entry.history]
    if not any(move == "ahead" for move, _ in moves):
        assert starts == sorted(starts)
