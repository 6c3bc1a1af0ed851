"""When a cron line is due: against a model that walks through local time, and by dates that anybody can check."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import islice, pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpworker.cron import read_spec
from mpworker.errors import ConfigurationError
from mpworker.supervisor.schedule import Calendar, Every

SECOND = timedelta(seconds=1)
RANGES = {"second": (0, 59), "minute": (0, 59), "hour": (0, 23), "day": (1, 31), "month": (1, 12), "weekday": (0, 7)}
DAYS = ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"]

# A clock change in each, within two days of the date.
CHANGES = [
    ("Europe/Berlin", 2026, 3, 29),
    ("Europe/Berlin", 2026, 10, 25),
    ("America/New_York", 2026, 3, 8),
    ("America/New_York", 2026, 11, 1),
    ("Australia/Lord_Howe", 2026, 4, 5),  # by half an hour
    ("Australia/Lord_Howe", 2026, 10, 4),
    ("Africa/Cairo", 2026, 4, 24),  # midnight is left out
    ("Africa/Cairo", 2026, 10, 30),  # the last hour of a day comes twice
    ("America/St_Johns", 2010, 3, 14),  # one minute after midnight
    ("America/St_Johns", 2010, 11, 7),  # the day before comes back
    ("Antarctica/Troll", 2026, 3, 29),  # by two hours
    ("Antarctica/Troll", 2026, 10, 25),
    ("Africa/Casablanca", 2026, 2, 15),  # in winter for Ramadan
    ("Africa/Casablanca", 2026, 3, 22),
    ("Pacific/Apia", 2011, 12, 30),  # a whole day is left out
    ("UTC", 2026, 2, 28),
]


def calendar(line: str, zone: str = "UTC") -> Calendar:
    return Calendar(**read_spec(line), zone=ZoneInfo(zone))


def calendar_if_ever_due(line: str, zone: str = "UTC") -> Calendar | None:
    try:
        return calendar(line, zone)
    except ConfigurationError as error:
        if "is never due" not in str(error):
            raise
    return None


def seconds(zone: str, *local: int, fold: int = 0) -> int:
    return int(datetime(*local, tzinfo=ZoneInfo(zone), fold=fold).timestamp())  # type: ignore[arg-type, misc]


def due(schedule: Calendar, start: float, end: float) -> Iterator[float]:
    """All times from start on and before end."""
    at = schedule.next_after(start - 1)
    while at is not None and at < end:
        yield at
        at = schedule.next_after(at)


# ------------------------------------------------------------ the model


def numbers(field: str, text: str) -> set[int]:
    low, high = RANGES[field]
    found: set[int] = set()
    for term in text.split(","):
        span, _, step = term.partition("/")
        if span == "*":
            first, last = low, high
        elif "-" in span:
            first, last = map(int, span.split("-"))
        else:
            first = DAYS.index(span) if span in DAYS else int(span)
            last = high if step else first
        found |= set(range(first, last + 1, int(step or 1)))
    return {each % 7 for each in found} if field == "weekday" else found


class Model:
    """Looks at each second, or each minute, of local time; knows nothing of offsets."""

    def __init__(self, line: str, zone: str) -> None:
        texts = line.split()
        self.step = 1 if len(texts) == 6 else 60
        texts = texts if len(texts) == 6 else ["0", *texts]
        self.sets = [numbers(field, text) for field, text in zip(RANGES, texts, strict=True)]
        self.both = texts[3][0] == "*" or texts[5][0] == "*"
        self.fixed = texts[1][0] != "*" and texts[2][0] != "*"
        self.zone = ZoneInfo(zone)

    def matches(self, local: datetime) -> bool:
        second, minute, hour, day, month, weekday = self.sets
        if local.hour not in hour or local.minute not in minute or local.second not in second:
            return False
        days = (local.day in day, (local.weekday() + 1) % 7 in weekday)
        return local.month in month and (all(days) if self.both else any(days))

    def due(self, start: int, end: int) -> list[int]:
        found = []
        before = datetime.fromtimestamp(start - self.step, self.zone).replace(tzinfo=None)
        for at in range(start, end, self.step):
            local = datetime.fromtimestamp(at, self.zone)
            time = local.replace(tzinfo=None, fold=0)
            if self.fixed:
                is_due = not local.fold and self.matches(time)
                left_out = before + self.step * SECOND
                while left_out < time:
                    is_due = is_due or self.matches(left_out)
                    left_out += self.step * SECOND
            else:
                is_due = self.matches(time)
            if is_due:
                found.append(at)
            before = time
        return found


@cache
def change(zone: str, year: int, month: int, day: int) -> int:
    """The moment of the clock change near a date."""
    noon = seconds(zone, year, month, day, 12)
    offsets = [(at, datetime.fromtimestamp(at, ZoneInfo(zone)).utcoffset()) for at in range(noon - 129_600, noon, 60)]
    changed = [at for (_, was), (at, is_) in pairwise(offsets) if was != is_]
    return changed[0] if changed else noon


def texts(low: int, high: int) -> st.SearchStrategy[str]:
    number = st.integers(low, high)
    span = st.tuples(number, number).map(lambda pair: f"{min(pair)}-{max(pair)}")
    step = st.tuples(st.one_of(st.just("*"), span, number.map(str)), st.integers(1, high)).map("{0[0]}/{0[1]}".format)
    return st.one_of(
        st.just("*"),
        number.map(str),
        span,
        step,
        st.lists(st.one_of(number.map(str), span), min_size=2, max_size=3).map(",".join),
    )


NIGHT = st.sampled_from(["0", "1", "2", "3", "23", "0,2", "1-3", "*/2", "23,0,1"])  # where clocks are changed
DAY = st.one_of(st.just("*"), st.just("*"), texts(1, 31))
WEEKDAY = st.one_of(st.just("*"), st.just("*"), texts(0, 7), st.sampled_from(DAYS))


@settings(deadline=None)
@given(
    place=st.sampled_from(CHANGES),
    line=st.tuples(texts(0, 59), st.one_of(NIGHT, texts(0, 23)), DAY, texts(1, 12), WEEKDAY).map(" ".join),
    points=st.lists(st.integers(-86_400, 86_400), max_size=5),
)
def test_minutes_are_those_of_the_model(place: tuple[str, int, int, int], line: str, points: list[int]) -> None:
    schedule = calendar_if_ever_due(line, place[0])
    if schedule is None:
        return
    middle = change(*place)
    start, end = middle - 93_600, middle + 93_600
    expected = Model(line, place[0]).due(start, end)
    assert list(due(schedule, start, end)) == expected
    for at in (middle + point for point in points):
        assert next(due(schedule, at, end), None) == next((each for each in expected if each >= at), None)


@settings(deadline=None)
@given(
    place=st.sampled_from(CHANGES[:12]),
    line=st.tuples(texts(0, 59), texts(0, 59), NIGHT, st.just("*"), st.just("*"), WEEKDAY).map(" ".join),
)
def test_seconds_are_those_of_the_model(place: tuple[str, int, int, int], line: str) -> None:
    middle = change(*place)
    start, end = middle - 4_000, middle + 4_000
    assert list(due(calendar(line, place[0]), start, end)) == Model(line, place[0]).due(start, end)


@settings(deadline=None)
@given(
    line=st.tuples(st.sampled_from(["0", "30"]), texts(0, 23), texts(1, 31), texts(1, 12), texts(0, 7)).map(" ".join),
    year=st.integers(1971, 2090),
)
def test_a_year_is_that_of_the_model(line: str, year: int) -> None:
    schedule = calendar_if_ever_due(line)
    if schedule is None:
        return
    model = Model(line, "UTC")
    model.step = 1_800  # nothing of these lines comes in between
    start, end = seconds("UTC", year, 1, 1), seconds("UTC", year + 1, 1, 1)
    assert list(due(schedule, start, end)) == model.due(start, end)


@given(at=st.floats(0, 4e9), line=st.sampled_from(["* * * * * *", "*/7 * * * * *", "0 */5 3 * * *", "1 2 3 4 5 *"]))
def test_the_next_time_is_later_and_not_passed_over(at: float, line: str) -> None:
    schedule = calendar(line, "Europe/Berlin")
    next_at = schedule.next_after(at)
    assert next_at is not None
    assert next_at > at
    assert next_at == int(next_at)
    between = (at + next_at) / 2
    assert between == next_at or schedule.next_after(between) == next_at  # it may be rounded
    assert schedule.next_after(next_at - 0.001) == next_at


# ------------------------------------------------------------ what everybody asks


def local_times(line: str, zone: str, *start: int, count: int, fold: int = 0) -> list[str]:
    schedule = calendar(line, zone)
    times = due(schedule, seconds(zone, *start, fold=fold), 1e11)
    return [datetime.fromtimestamp(at, ZoneInfo(zone)).strftime("%d %H:%M:%S %z") for at in islice(times, count)]


@pytest.mark.parametrize("line", ["30 2 * * *", "0 30 2 * * *", "0,30 2 * * *", "0-59 2 * * *", "30 2,3 * * *"])
def test_a_time_that_the_clock_leaps_over_is_made_up_for_once_and_at_once(line: str) -> None:
    found = local_times(line, "Europe/Berlin", 2026, 3, 29, count=3)
    assert found[0] == "29 03:00:00 +0200"
    assert found[1].startswith("29 03:30" if "2,3" in line else "30 02:")
    assert local_times(line, "Europe/Berlin", 2026, 3, 29, 3, count=3) == found  # asked in the second before
    assert local_times("59 1 * * *", "Europe/Berlin", 2026, 3, 29, count=2) == [
        "29 01:59:00 +0100",
        "30 01:59:00 +0200",
    ]


@pytest.mark.parametrize("line", ["30 2 * * *", "0 30 2 * * *"])
def test_a_time_that_comes_twice_is_due_once(line: str) -> None:
    found = local_times(line, "Europe/Berlin", 2026, 10, 25, count=2)
    assert found == ["25 02:30:00 +0200", "26 02:30:00 +0100"]
    # Also when asked in the second pass, in which the first one is past.
    assert local_times(line, "Europe/Berlin", 2026, 10, 25, 2, 10, count=1, fold=1) == found[1:]


def test_what_runs_by_the_minute_or_the_hour_runs_through_both_passes() -> None:
    found = local_times("*/30 * * * *", "Europe/Berlin", 2026, 10, 25, 2, count=5)
    assert found == [
        "25 02:00:00 +0200",
        "25 02:30:00 +0200",
        "25 02:00:00 +0100",
        "25 02:30:00 +0100",
        "25 03:00:00 +0100",
    ]
    assert local_times("15 * * * *", "Europe/Berlin", 2026, 10, 25, 2, count=3) == [
        "25 02:15:00 +0200",
        "25 02:15:00 +0100",
        "25 03:15:00 +0100",
    ]
    assert local_times("*/30 * * * *", "Europe/Berlin", 2026, 3, 29, 1, count=3) == [
        "29 01:00:00 +0100",
        "29 01:30:00 +0100",
        "29 03:00:00 +0200",
    ]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("0 0 29 2 *", ["2024-02-29", "2028-02-29", "2032-02-29"]),
        ("0 0 31 * *", ["2024-01-31", "2024-03-31", "2024-05-31"]),
        ("0 0 30 1-3 *", ["2024-01-30", "2024-03-30", "2025-01-30"]),
        ("0 0 L * *", ["2024-01-31", "2024-02-29", "2024-03-31"]),
        ("0 0 LW 3-6 *", ["2024-03-29", "2024-04-30", "2024-05-31", "2024-06-28"]),
        ("0 0 13 * FRI", ["2024-01-05", "2024-01-12", "2024-01-13", "2024-01-19"]),  # either
        ("0 0 */13 * FRI", ["2024-03-01", "2024-06-14", "2024-09-27"]),  # both, for one begins with a star
        ("0 0 * * 0", ["2024-01-07", "2024-01-14"]),
        ("0 0 * * 7", ["2024-01-07", "2024-01-14"]),
        ("0 0 * * Sun", ["2024-01-07", "2024-01-14"]),
        ("0 0 * * 5-7", ["2024-01-05", "2024-01-06", "2024-01-07", "2024-01-12"]),
        ("0 0 * feb mon", ["2024-02-05", "2024-02-12"]),
        ("0 0 * * MON#1", ["2024-01-01", "2024-02-05", "2024-03-04"]),
        ("0 0 * * 7#5", ["2024-03-31", "2024-06-30"]),
        ("0 0 * * 5L", ["2024-01-26", "2024-02-23", "2024-03-29"]),
        ("0 0 * 2 MON#5", ["2044-02-29", "2072-02-29", "2112-02-29"]),
        ("@yearly", ["2024-01-01", "2025-01-01"]),
        ("@annually", ["2024-01-01", "2025-01-01"]),
        ("@monthly", ["2024-01-01", "2024-02-01"]),
        ("@weekly", ["2024-01-07", "2024-01-14"]),
        ("@daily", ["2024-01-01", "2024-01-02"]),
        ("@midnight", ["2024-01-01", "2024-01-02"]),
        (" @DAILY ", ["2024-01-01", "2024-01-02"]),
    ],
)
def test_the_days_of_a_line(line: str, expected: list[str]) -> None:
    times = due(calendar(line), seconds("UTC", 2024, 1, 1), 1e11)
    found = [datetime.fromtimestamp(at, UTC) for at in islice(times, len(expected))]
    assert [each.strftime("%Y-%m-%d") for each in found] == expected
    assert {(each.hour, each.minute, each.second) for each in found} == {(0, 0, 0)}


def test_every_hour() -> None:
    start = seconds("UTC", 2026, 12, 31, 22)
    assert list(due(calendar("@hourly"), start, start + 10_000)) == [start, start + 3_600, start + 7_200]


@given(seconds=st.floats(0.01, 1e6), start=st.floats(0, 1e9), passed=st.floats(0, 1e7))
def test_each_so_many_seconds_counts_from_the_start(seconds: float, start: float, passed: float) -> None:
    every = Every(seconds, start)
    assert every.next_after(start) == pytest.approx(start + seconds, abs=1e-6)
    at = start + passed
    next_at = every.next_after(at)
    assert at < next_at <= at + seconds + 1e-6
    turns = (next_at - start) / seconds
    assert turns == pytest.approx(round(turns), rel=1e-9, abs=1e-4)


def test_each_so_many_seconds_does_not_drift() -> None:
    every, at = Every(0.1, 5.0), 5.0
    for _ in range(1_000):
        at = every.next_after(at)
    assert at == pytest.approx(105.0, abs=1e-9)
