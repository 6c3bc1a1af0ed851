"""The search for a plan, and how it is told."""

import dataclasses
import json
import math
from collections.abc import Callable

import pytest
from test_planning_simulation import FREE, erlang_c, job
from test_report import Tags

from mpworker.errors import ConfigurationError
from mpworker.planning import results, study
from mpworker.planning.described import Description, service
from mpworker.planning.load import Load, Pool, QueueLimits
from mpworker.planning.study import Plan, Study, Targets
from mpworker.supervisor.registry import TaskOptions


def same(load: Load) -> Callable[[int], Load]:
    return lambda _seed: load


def batch(count: int, seconds: float = 1.0) -> Load:
    return Load([job(0.0, seconds) for _ in range(count)])


def plan(loads: Callable[[int], Load], targets: Targets, cores: float = 64.0, **more: object) -> Plan:
    return Study(loads, Pool(1, cores, costs=FREE), targets, replications=1, **more).plan()  # type: ignore[arg-type]


def told(found: Plan) -> results.Findings:
    return results.Findings(found, "a load")


def test_the_least_number_that_meets_the_target_is_found() -> None:
    """40 tasks of a second, 95 % of them in at most 4.0 s: that takes 10 children at least, of which 9 is no step."""
    found = plan(same(batch(40)), Targets(p95=4.01))
    assert (found.chosen, found.met) == (10, True)
    assert 9 in found.points, "what lies between the steps was looked at"
    assert found.point.met == found.point.runs == 2
    assert "n=10 children meet p95 <= 4.01 s" in results.answer(told(found))[0]


def test_the_number_of_erlang_is_found() -> None:
    """A mean wait of 0.1 s at 5 erlangs: by Erlang's C that takes 7 or 8 children."""
    wanted = next(n for n in range(6, 20) if erlang_c(n, 5.0) / (n - 5.0) < 0.1)
    description = Description(service("exponential:1"), rate=5.0, tasks=4000)
    found = Study(description.load, Pool(1, 64.0, costs=FREE), Targets(), replications=0, low=4, high=12, every=True)
    waits = {n: point.outcome.waits for n, point in found.plan().points.items()}
    assert next(n for n, each in waits.items() if sum(each) / len(each) < 0.1) == pytest.approx(wanted, abs=1)


def test_cores_are_told_to_be_what_is_missing() -> None:
    found = plan(same(batch(40)), Targets(p95=4.01), cores=2.0)
    assert not found.met
    assert found.with_cores == 10
    said = " ".join(results.answer(told(found)))
    assert "meets p95 <= 4.01 s in all simulations on 2 cores" in said
    assert "With a core for each child, n=10 would." in said
    assert plan(same(batch(40)), Targets(p95=0.5), cores=2.0).with_cores is None


def test_deadlines_are_a_target() -> None:
    load = Load([job(each * 0.1, 1.0, deadline=1.5) for each in range(200)])
    found = plan(same(load), Targets(misses=0.0))
    assert found.met
    assert 9 <= found.chosen <= 11
    assert found.points[1].outcome.misses > 0.5
    assert "at most 0.00% of deadlines missed" in results.answer(told(found))[0]


def test_every_replication_has_to_meet_the_target() -> None:
    loads = [batch(40), batch(80)]
    found = plan(lambda seed: loads[seed], Targets(p95=4.01))
    assert found.chosen == 20
    assert found.points[10].met == 1
    assert found.points[10].spread(lambda each: each.latency(0.95)) == pytest.approx((4.0, 8.0), abs=0.1)


def test_what_is_overloaded_is_not_replicated_unless_it_is_good_enough() -> None:
    load = Load([job(each * 0.5, 1.0) for each in range(200)])
    assert plan(same(load), Targets(p95=1.0)).points[1].runs == 1
    lax = plan(same(load), Targets(p95=1000.0))
    assert (lax.chosen, lax.points[1].runs) == (1, 2)
    assert "That is overloaded" in " ".join(results.answer(told(lax)))


def test_without_a_target_the_knee_is_told() -> None:
    found = plan(same(Load([job(each * 0.5, 1.0) for each in range(200)])), Targets())
    assert (found.chosen, found.met) == (2, False)
    assert found.points[1].overloaded
    assert not found.points[3].overloaded
    assert "No target was given" in results.answer(told(found))[0]


def test_what_gains_little_is_beyond_the_knee() -> None:
    found = plan(Description(service("exponential:1"), rate=2.0, tasks=1000).load, Targets())
    p95s = {n: point.outcome.latency(0.95) for n, point in found.points.items()}
    best = min(p95s.values())
    assert best < p95s[found.chosen] <= 1.1 * best
    assert all(p95 > 1.1 * best for n, p95 in p95s.items() if n < found.chosen)


def test_each_number_is_looked_at_where_that_is_asked() -> None:
    found = plan(same(batch(3)), Targets(), low=2, high=9, every=True)
    assert list(found.points) == list(range(2, 10))


def test_what_a_rate_and_a_burst_do() -> None:
    found = plan(same(batch(40, 0.01)), Targets(p95=1.0))
    free, *limited = found.rates
    assert free.rate is None
    assert free.outcome.latency(0.95) < limited[0].outcome.latency(0.95)
    slow = [each for each in limited if each.rate == limited[0].rate]
    assert [each.burst for each in slow] == sorted(each.burst for each in slow)
    assert slow[0].busiest < slow[-1].busiest


def test_a_rate_of_the_pool_is_in_the_table() -> None:
    pool = Pool(1, 8.0, rate=5.0, burst=3, costs=FREE)
    found = Study(same(batch(20, 0.01)), pool, Targets(), high=4, replications=0).plan()
    assert any((each.rate, each.burst) == (5.0, 3) for each in found.rates)
    assert "rate=5.0" in results.configuration(told(found))
    assert "burst=3" in results.configuration(told(found))


def test_the_busiest_tenth_of_a_second() -> None:
    assert study._busiest([]) == 0
    assert study._busiest([0.0, 0.05, 0.099, 0.1, 0.3]) == 3
    assert study._busiest([0.3, 0.0]) == 1


def test_machines_are_counted_by_what_one_carries() -> None:
    """One carries half of it, so two carry it and twenty carry ten times as much."""
    found = Study(same(batch(80)), Pool(1, 10.0, costs=FREE), Targets(p95=4.01), high=10, replications=0).plan()
    assert found.node_n == 10
    assert found.node_load == pytest.approx(0.5, rel=0.1)
    assert found.nodes[1] in (2, 3)
    assert found.nodes[10] in range(20, 23)
    assert "One machine with n=10 on 10 cores carries 0.5" in " ".join(results.answer(told(found)))


def test_no_machine_carries_more_than_its_cores_can_do_however_late_a_task_may_be() -> None:
    timed = Load([job(each * 0.1, 0.1) for each in range(100)])  # one core is busy with it
    found = Study(same(timed), Pool(1, 4.0, costs=FREE), Targets(p95=1000.0), high=4, replications=0).plan()
    assert found.node_load == pytest.approx(4.0, rel=0.1)


def test_a_load_is_multiplied() -> None:
    timed = Load([job(each, 1.0) for each in range(11)])
    assert timed.times(2.0).rate == pytest.approx(2.0)
    assert len(batch(10).times(2.5).jobs) == 25
    assert len(batch(10).times(0.01).jobs) == 1


# ------------------------------------------------------------ how it is told


@pytest.fixture(scope="module")
def findings() -> results.Findings:
    options = TaskOptions(timeout=9.0, retries=2, crash_retries=2)
    load = Load([job(each * 0.1, 0.3, options, size=1 << 20, deadline=5.0) for each in range(200)])
    pool = Pool(1, 8.0, queues={"default": QueueLimits(), "slow": QueueLimits(3, max_running=2), "b": QueueLimits(7)})
    found = Study(lambda _seed: load, pool, Targets(p95=0.5, misses=0.01), high=16, replications=1).plan()
    return results.Findings(found, "<b>a load</b>", ["a note"], 10 << 20, [("p95", 1.1, 1.0)])


def test_the_configuration_makes_the_pool(findings: results.Findings) -> None:
    from mpworker import ProcessWorker, QueueOptions

    text = results.configuration(findings)
    made: dict[str, object] = {}
    names = {"ProcessWorker": lambda **options: made.update(options), "QueueOptions": QueueOptions}
    lines = text.splitlines()
    assert lines[0] == "from mpworker import ProcessWorker, QueueOptions"
    exec("\n".join(lines[1:]), names)
    assert made == {
        "n": findings.plan.chosen,
        "timeout": 9.0,
        "retries": 2,
        "max_pending": 1000,
        "queues": {"slow": QueueOptions(weight=3, max_running=2), "b": 7},
    }
    with ProcessWorker(**made) as worker:  # type: ignore[arg-type]
        assert worker.n == findings.plan.chosen


def test_the_queue_that_was_seen_fits_twice() -> None:
    found = plan(same(batch(3000, 0.001)), Targets(), high=1)
    assert "max_pending=10_000" in results.configuration(told(found))


def test_the_json_is_whole(findings: results.Findings) -> None:
    whole = json.loads(json.dumps(results.as_json(findings), allow_nan=False))
    assert whole["n"] == findings.plan.chosen
    assert whole["met"] is True
    (chosen,) = [point for point in whole["points"] if point["n"] == whole["n"]]
    assert chosen["latency"]["p50"] == pytest.approx(0.3, abs=0.01)
    assert chosen["memory"] == results.BASE_BYTES + whole["n"] * (10 << 20) + chosen["depth_max"] * (600 + (1 << 20))
    assert len(whole["depth"]["most"]) > 100
    assert whole["rates"][0]["rate"] is None
    assert whole["configuration"].startswith("from mpworker import ")
    assert any("+10.0%" in each for each in whole["sureness"])
    assert "a note" in whole["sureness"]


@pytest.mark.parametrize(("model", "far_off"), [(1.19, False), (1.21, True), (0.81, False), (0.79, True)])
def test_a_model_that_is_far_from_what_was_recorded_is_not_to_be_used(
    findings: results.Findings, model: float, far_off: bool
) -> None:
    said = results.sureness(dataclasses.replace(findings, check=[("p50", 1.0, 1.0), ("p95", model, 1.0)]))
    assert any("MORE THAN 20% OFF" in each for each in said) is far_off


def test_a_configuration_that_misses_the_target_says_so(findings: results.Findings) -> None:
    found = plan(same(batch(80)), Targets(p95=0.001), high=4)
    assert not found.met
    lines = results.configuration(told(found)).splitlines()
    assert lines[:2] == ["# Does not meet p95 <= 0.001 s.", "from mpworker import ProcessWorker"]


def test_the_report_is_one_page_and_says_it_all(findings: results.Findings) -> None:
    page = results.document(findings).html()
    tags = Tags(page)
    assert tags.found.count("svg") == 3
    assert "script" not in tags.found
    for text in (*results.answer(findings), *results.sureness(findings), results.configuration(findings), "<b>a load"):
        assert text in tags.text


def test_what_nobody_knows_is_a_dash() -> None:
    assert results.seconds(math.nan) == "-"
    load = Load([job(0.0, 1.0, cancel=0.5)])
    found = Study(lambda _seed: load, Pool(1, 1.0, costs=FREE), Targets(p95=1.0), high=1, replications=0).plan()
    assert json.dumps(results.as_json(told(found)), allow_nan=False)


# ------------------------------------------------------------ descriptions


def test_service_times_are_what_they_are_called(tmp_path: object) -> None:
    import random
    from pathlib import Path

    samples = Path(str(tmp_path)) / "samples"
    samples.write_text("0.5\n\n1.5\n1e-3\n")
    chance = random.Random(1)
    for text, mean, p95 in (
        ("constant:0.2", 0.2, 0.2),
        ("exponential:0.2", 0.2, 0.2 * math.log(20)),
        ("lognormal:0.2,0.6", 0.2, 0.6),
        ("uniform:0.1,0.3", 0.2, 0.29),
        (f"file:{samples}", 2.001 / 3, 1.5),
    ):
        described = service(text)
        drawn = sorted(described.draw(chance) for _ in range(20_000))
        assert described.mean == pytest.approx(mean)
        assert sum(drawn) / len(drawn) == pytest.approx(mean, rel=0.03)
        assert drawn[19_000] == pytest.approx(p95, rel=0.06)
        if text.startswith("lognormal"):  # of the two with this mean and p95, the less skewed one
            assert drawn[10_000] > 0.1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("0.2", r"service '0.2' must be constant:SECONDS, exponential:MEAN"),
        ("gamma:1", "must be constant:SECONDS"),
        ("constant:", "'' is no number of seconds"),
        ("constant:-1", "a time must be at least 1e-09, not -1.0"),
        ("constant:nan", "a time must be a number"),
        ("constant:1,2", "must be constant:SECONDS"),
        ("exponential:fast", "'fast' is no number of seconds"),
        ("lognormal:1,9", r"p95 of a lognormal distribution is 1 to 3.87 times its mean, not 9.00"),
        ("lognormal:1,0.5", "not 0.50"),
        ("uniform:2,1", "the high end 1 is below the low end 2"),
        ("file:/nowhere/at/all", "cannot be read: "),
    ],
)
def test_service_times_that_are_none_are_refused(text: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        service(text)


def test_a_line_of_samples_that_is_none_is_named(tmp_path: object) -> None:
    from pathlib import Path

    path = Path(str(tmp_path)) / "samples"
    path.write_text("0.5\nsoon\n")
    with pytest.raises(ConfigurationError, match=r"samples, line 2: 'soon' is no number of seconds"):
        service(f"file:{path}")
    path.write_text("\n")
    with pytest.raises(ConfigurationError, match="there is no number in it"):
        service(f"file:{path}")


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({}, "either an arrival rate or a batch size"),
        ({"rate": 1.0, "batch": 1}, "either an arrival rate or a batch size"),
        ({"rate": -1.0}, r"the arrival rate must be at least 1e-06, not -1.0"),
        ({"rate": math.inf}, r"the arrival rate must be at most 1e\+06"),
        ({"rate": 1.0, "tasks": 5}, "tasks must be at least 100, not 5"),
        ({"batch": 0}, "the batch size must be at least 1, not 0"),
        ({"batch": 1, "failures": 1.5}, "the part of failures must be at most 1, not 1.5"),
        ({"batch": 1, "retries": -1}, "retries must be at least 0, not -1"),
        ({"batch": 1, "timeout": 0.0}, "timeout must be greater than 0 s, not 0.0"),
        ({"batch": 1, "deadline": -1.0}, "deadline must be greater than 0 s, not -1.0"),
        ({"batch": 1, "size": -1}, "the size of a call must be at least 0, not -1"),
    ],
)
def test_a_description_out_of_bounds_is_refused(wrong: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        Description(service("constant:1"), **wrong)  # type: ignore[arg-type]


def test_failures_take_their_retries() -> None:
    load = Description(service("constant:1"), batch=10_000, failures=0.25, retries=2).load(1)
    lengths = [len(each.attempts) for each in load.jobs]
    assert lengths.count(1) / 10_000 == pytest.approx(0.75, abs=0.02)
    assert lengths.count(3) / 10_000 == pytest.approx(0.0625, abs=0.01)
    assert sum(each.attempts[-1].status != 0 for each in load.jobs) / 10_000 == pytest.approx(0.25**3, abs=0.006)
