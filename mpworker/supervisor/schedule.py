"""When a recurring task is due: pure functions of the time.

A `Calendar` is what a cron line means, as sets of numbers: the line itself is read in the client, where the library for
that is. Here it is evaluated, for daylight saving is the hard part, and each library that was looked at gets some of it
wrong: a time before the one that was asked about, a run too many in the hour that comes twice, the odd half hour of
Lord Howe left out.

The rule is that of Vixie's cron. A line is *fixed* if neither its minute nor its hour begins with a star; any other one
is *running*.

- A running line follows the clock on the wall: it is due at each moment whose local time matches. So it is due in both
  passes of an hour that comes twice, and at nothing in an hour that is left out.
- A fixed line means a time of the day, and is due once for it: in the first pass of an hour that comes twice; and if
  the clock leaps over it, at the end of the gap, at once with whatever else the clock has leapt over.

Vixie's cron makes an exception of leaps of three hours and more, which it takes for a clock that was set. Here the
offsets come from the time zone, and a clock that was set is no matter of it (`mpworker.supervisor.timetable`).
"""

import math
from bisect import bisect_left
from calendar import monthrange
from collections.abc import Iterable
from datetime import MAXYEAR, date, datetime, timedelta, tzinfo
from typing import Final, Protocol

LAST: Final = -1  # as a day of the month: the last one; as the number of a weekday: the last one of the month
LAST_WORKDAY: Final = -2  # as a day of the month: its last Monday, Tuesday, Wednesday, Thursday or Friday
EACH: Final = 0  # as the number of a weekday: each of the month
YEARS_MAX: Final = 50  # a line that is not due for so long never is
_STRIDE: Final = 86_400  # seconds; the time zone is looked at so often for a change, and has none twice in between
_DAY: Final = timedelta(days=1)
_SECOND: Final = timedelta(seconds=1)
_EPOCH: Final = datetime(1970, 1, 1)


class Schedule(Protocol):
    """When something is due.

    Attributes:
        elapsed: It counts seconds that have passed, by a clock that nobody sets; else it goes by the calendar, and its
            times are seconds since the epoch.
        fixed: It is due once for each of its times of the day, however often the clock shows it.
    """

    @property
    def elapsed(self) -> bool:
        """See above."""

    @property
    def fixed(self) -> bool:
        """See above."""

    def next_after(self, at: float) -> float | None:
        """The first time due after `at`, None for never."""


class Every:
    """Due each so many seconds.

    Args:
        seconds: How many.
        start: The time from which they count; it is not due then.
    """

    elapsed = True
    fixed = False

    def __init__(self, seconds: float, start: float) -> None:
        self._seconds = seconds
        self._start = start

    def next_after(self, at: float) -> float:
        """See `Schedule`."""
        turn = math.floor((at - self._start) / self._seconds)
        while (due := self._start + turn * self._seconds) <= at:  # the quotient may have been rounded, either way
            turn += 1
        return due


class Calendar:
    """A cron line.

    Args:
        seconds: Of a minute at which it is due.
        minutes: Of an hour.
        hours: Of a day.
        days: Of a month; also LAST and LAST_WORKDAY.
        months: Of a year, from 1.
        weekdays: Pairs of a weekday, 0 to 6 from Sunday, and which of the month it must be: EACH, 1 to 5, or LAST.
        both: A day must match `days` and `weekdays`; else one of the two is enough.
        fixed: See the module.
        zone: Whose time it goes by.
    """

    elapsed = False

    def __init__(
        self,
        *,
        seconds: Iterable[int],
        minutes: Iterable[int],
        hours: Iterable[int],
        days: Iterable[int],
        months: Iterable[int],
        weekdays: Iterable[tuple[int, int]],
        both: bool,
        fixed: bool,
        zone: tzinfo,
    ) -> None:
        self._seconds = sorted(seconds)
        self._minutes = sorted(minutes)
        self._hours = sorted(hours)
        self._days = frozenset(days)
        self._months = frozenset(months)
        self._weekdays = frozenset(weekdays)
        self._both = both
        self.fixed = fixed
        self.zone = zone

    def next_after(self, at: float) -> float | None:
        """See `Schedule`. The times are whole seconds."""
        second = math.floor(at)
        return self._next_fixed(second) if self.fixed else self._next_running(second + 1)

    def _next_fixed(self, at: int) -> int | None:
        local = self._local(at)
        if local.fold:  # whatever is due in the second pass was due in the first
            time = self._end_of_fold(local, at)
        else:  # not that of the next second, which may be at the end of a gap: what is in that is due then
            time = local.replace(tzinfo=None) + _SECOND
        found = self._match(time)
        return None if found is None else self._instant(found)

    def _next_running(self, at: int) -> int | None:
        while True:
            offset = self._offset(at)
            found = self._match(self._local(at).replace(tzinfo=None, fold=0))
            if found is None:
                return None
            due = _seconds_of(found) - offset  # if the offset stays what it is
            while self._offset(at + _STRIDE) == offset:
                at += _STRIDE
                if due < at:
                    return due
            change = self._change(at, at + _STRIDE)
            if due < change:
                return due
            at = change

    # ------------------------------------------------------------ local time

    def _local(self, at: int) -> datetime:
        return datetime.fromtimestamp(at, self.zone)

    def _offset(self, at: int) -> int:
        return _offset_of(self._local(at))

    def _change(self, before: int, after: int) -> int:
        """The moment between the two from which on the offset is that of `after`."""
        offset = self._offset(after)
        while after - before > 1:
            middle = (before + after) // 2
            if self._offset(middle) == offset:
                after = middle
            else:
                before = middle
        return after

    def _end_of_fold(self, local: datetime, at: int) -> datetime:
        """The local time at which the clock was set back to the beginning of its second pass."""
        offset = _offset_of(local.replace(fold=0))
        length = offset - _offset_of(local)
        return _EPOCH + _SECOND * (self._change(at - length, at) + offset)

    def _instant(self, time: datetime) -> int:
        """When it is this local time, for the first time; for one that the clock leaps over, the end of the leap."""
        offset = _offset_of(time.replace(tzinfo=self.zone))  # in a gap that of before
        at = _seconds_of(time) - offset
        leap = self._offset(at) - offset
        if leap <= 0 or self._local(at).replace(tzinfo=None) == time:
            return at
        return self._change(at - leap, at)

    # ------------------------------------------------------------ the line

    def _match(self, time: datetime) -> datetime | None:
        """The first local time from this one on that matches, clock changes or not."""
        day = time.date()
        last_year = min(day.year + YEARS_MAX, MAXYEAR - 1)
        found = self._time_from(time.hour, time.minute, time.second)
        while day.year <= last_year:
            if day.month not in self._months:
                day = (day.replace(day=1) + 31 * _DAY).replace(day=1)
            elif found is None or not self._is_day(day):
                day += _DAY
            else:
                return datetime(day.year, day.month, day.day, *found)
            found = (self._hours[0], self._minutes[0], self._seconds[0])
        return None

    def _time_from(self, hour: int, minute: int, second: int) -> tuple[int, int, int] | None:
        hours, minutes, seconds = self._hours, self._minutes, self._seconds
        h, m, s = bisect_left(hours, hour), bisect_left(minutes, minute), bisect_left(seconds, second)
        if h < len(hours) and hours[h] == hour:
            if m < len(minutes) and minutes[m] == minute:
                if s < len(seconds):
                    return hour, minute, seconds[s]
                m += 1
            if m < len(minutes):
                return hour, minutes[m], seconds[0]
            h += 1
        return (hours[h], minutes[0], seconds[0]) if h < len(hours) else None

    def _is_day(self, day: date) -> bool:
        length = monthrange(day.year, day.month)[1]
        of_month = day.day in self._days
        if not of_month and day.day > length - 3:
            to_friday = (day.replace(day=length).weekday() - 4) % 7  # days from the last Friday to the end of the month
            workday = length - to_friday if to_friday < 3 else length
            of_month = (LAST in self._days and day.day == length) or (LAST_WORKDAY in self._days and day.day == workday)
        if of_month != self._both:
            return of_month
        weekday = (day.weekday() + 1) % 7
        numbers = (EACH, (day.day + 6) // 7, LAST if day.day + 7 > length else EACH)
        return any((weekday, number) in self._weekdays for number in numbers)


def _seconds_of(time: datetime) -> int:
    return (time - _EPOCH) // _SECOND


def _offset_of(local: datetime) -> int:
    offset = local.utcoffset()
    assert offset is not None  # for it has a time zone
    return offset // _SECOND
