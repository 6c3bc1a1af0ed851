"""What is wrong with a recurring task is told where it is registered: one line, the value and the bound."""

import functools
import math
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from refusals import refuse

from mpworker import ProcessWorker
from mpworker.cron import _SHORTHANDS, read_spec
from mpworker.errors import ConfigurationError, InvalidArgument


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessWorker]:
    with ProcessWorker(n=1) as worker:
        yield worker


@pytest.mark.parametrize(
    ("spec", "field", "bound", "value"),
    [
        ("60 * * * *", "minute", "0 to 59", "60"),
        ("* 24 * * *", "hour", "0 to 23", "24"),
        ("* * 0 * *", "day of the month", "1 to 31", "0"),
        ("* * 32 * *", "day of the month", "1 to 31", "32"),
        ("* * * 13 *", "month", "1 to 12", "13"),
        ("* * * JAM *", "month", "JAN to DEC", "JAM"),
        ("* * * * 8", "day of the week", "0 to 7", "8"),
        ("* * * * MON#6", "day of the week", "#1 to #5", "MON#6"),
        ("* * * * fri-sun", "day of the week", "SUN to SAT", "fri-sun"),
        ("60 * * * * *", "second", "0 to 59", "60"),
        ("* 99 * * * *", "minute", "0 to 59", "99"),
        ("5-1 * * * *", "minute", "0 to 59", "5-1"),
        ("*/0 * * * *", "minute", "0 to 59", "*/0"),
        ("4-4/0 * * * *", "minute", "0 to 59", "4-4/0"),
        ("1,,2 * * * *", "minute", "0 to 59", "1,,2"),
        ("-1 * * * *", "minute", "0 to 59", "-1"),
        ("1.5 * * * *", "minute", "0 to 59", "1.5"),
        ("\u0663 * * * *", "minute", "0 to 59", "\u0663"),  # a digit, of another script
    ],
)
def test_a_field_is_named_with_its_bounds(spec: str, field: str, bound: str, value: str) -> None:
    refuse(read_spec, spec, says=[f"the {field} of cron spec {spec!r} must be ", bound, f"not {value!r}"])


@pytest.mark.parametrize(
    ("spec", "count"), [("", 0), ("   ", 0), ("* * * *", 4), ("0 0 0 1 1 * 2026", 7), ("hourly", 1)]
)
def test_a_line_of_another_length(spec: str, count: int) -> None:
    refuse(read_spec, spec, says=[f"cron spec {spec!r} has {count} fields", "5 fields", "seconds first", "@every 10s"])


@pytest.mark.parametrize("spec", ["0 0 30 2 *", "0 0 31 4,6,9,11 *", "0 0 0 30,31 2 *"])
def test_a_line_that_is_never_due(spec: str) -> None:
    refuse(read_spec, spec, says=["is never due", repr(spec)])


def test_a_line_whose_days_never_meet() -> None:
    refuse(read_spec, "0 0 */20 * 1L", says=["is never due"])  # the 1st or the 21st, if it is a month's last Monday


@pytest.mark.parametrize("spec", ["@reboot", "@fortnightly", "@", "@hourly 5"])
def test_a_shorthand_that_is_unknown(spec: str) -> None:
    refuse(read_spec, spec, says=[f"cron spec {spec!r} is unknown", *_SHORTHANDS])


@pytest.mark.parametrize("text", ["", "10", "s", "10 seconds", "1h-5m", "-5s", "1e3s", "1s 2", "10S", "\u0663s"])
def test_a_duration_that_is_none(text: str) -> None:
    refuse(read_spec, f"@every {text}", says=["@every", "needs a duration", "10s, 1m30s", "not "])


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("10s", 10), ("0.2s", 0.2), ("500ms", 0.5), ("1m30s", 90), ("2h", 7_200), ("1d", 86_400), ("1h 30m", 5_400)],
)
def test_a_duration(text: str, seconds: float) -> None:
    assert read_spec(f" @Every {text}") == {"every": pytest.approx(seconds)}


def test_a_duration_out_of_bounds() -> None:
    refuse(read_spec, "@every 9ms", says=["at least 0.01 s, not 0.009 s"])
    refuse(read_spec, "@every 0s", says=["at least 0.01 s, not 0 s"])
    refuse(read_spec, "@every 367d", says=["at most 31622400 s, not 3.17088e+07 s"])
    assert read_spec("@every 10ms") == {"every": 0.01}
    assert read_spec("@every 366d") == {"every": 366 * 86_400}


@pytest.mark.parametrize("spec", [None, 5, b"* * * * *", ["*"] * 5, timedelta(seconds=5)])
def test_a_line_that_is_no_text(spec: Any) -> None:
    refuse(read_spec, spec, kind=InvalidArgument, says=["a cron spec is a str", repr(spec)])


def test_a_line_that_is_too_long() -> None:
    refuse(read_spec, f"{','.join(['1'] * 600)} * * * *", says=["at most 1000 characters, not 1207"])


@given(st.one_of(st.text(max_size=30), st.text("0123456789*/,-#LW MONSUJAT@everyms.", max_size=30)))
def test_any_text_means_something_or_is_refused(spec: str) -> None:
    try:
        read_spec(spec)
    except ConfigurationError as error:
        message = str(error)
        assert repr(spec) in message  # it may also be a line that is good


@given(st.lists(st.text("0123456789*/,-#LWMONSUAT", min_size=1, max_size=5), min_size=5, max_size=6).map(" ".join))
def test_any_fields_mean_something_or_are_refused(spec: str) -> None:
    test_any_text_means_something_or_is_refused.hypothesis.inner_test(spec)  # type: ignore[attr-defined]


def test_a_time_zone(pool: ProcessWorker) -> None:
    register = functools.partial(pool.register_cron_task, "it", "@daily", print)
    for name in ("Europe/Berln", "Europe", "", "../../etc/passwd", "/etc/localtime", "zone.tab", "a\0b", "CEST+2"):
        refuse(register, tz=name, says=[f"tz {name!r} is not in this machine's database", "tzdata"])
    for value in (None, 2, timezone(timedelta(hours=2)), datetime.now(), b"UTC", ZoneInfo):
        refuse(register, tz=value, kind=InvalidArgument, says=["tz must be the name of a time zone", repr(value)])
    assert pool.cron_tasks() == []


def test_the_other_arguments(pool: ProcessWorker) -> None:
    def register(name: Any = "it", task: Any = print, **options: Any) -> None:
        pool.register_cron_task(name, "@daily", task, **options)

    for value in (None, 5, b"it"):
        refuse(register, value, kind=InvalidArgument, says=["the name of a cron task is a str", repr(value)])
    refuse(register, "", says=["1 to 200 characters, not 0"])
    refuse(register, "x" * 201, says=["1 to 200 characters, not 201"])
    refuse(register, task=5, kind=InvalidArgument, says=["needs a callable without arguments, or a Task, not 5"])
    refuse(register, task=_asynchronous, kind=InvalidArgument, says=["'_asynchronous' is asynchronous"])
    refuse(register, overlap="both", says=["overlap must be one of 'skip', 'queue', not 'both'"])
    refuse(register, overlap=None, kind=InvalidArgument, says=["overlap must be one of", "not None"])
    refuse(register, misfire="twice", says=["misfire must be one of 'skip', 'once', 'all', not 'twice'"])
    refuse(register, misfire=[], kind=InvalidArgument, says=["misfire must be one of", "not []"])
    refuse(register, misfire_grace=-1, says=["misfire_grace must be at least 0 s, not -1"])
    refuse(register, misfire_grace=math.inf, says=["misfire_grace must be at most 1000000000 s"])
    refuse(register, misfire_grace="1", kind=InvalidArgument, says=["misfire_grace must be a number of seconds"])
    for verb in (pool.pause_cron_task, pool.cron_history, pool.run_cron_task):
        refuse(verb, None, kind=InvalidArgument, says=["the name of a cron task is a str, not None"])
        refuse(verb, "", says=["1 to 200 characters, not 0"])
    assert pool.cron_tasks() == []


async def _asynchronous() -> None:
    pass
