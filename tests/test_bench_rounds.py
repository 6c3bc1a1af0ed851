"""Who has a turn when, and what becomes of turns that fail, hang or have nothing to offer."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import __main__ as developers
from mpworker.bench import measure, peers, rounds
from mpworker.bench.measure import Benchmark, Settings
from mpworker.bench.peers import PEERS
from mpworker.bench.rounds import Turn
from mpworker.bench.suite import SUITE
from mpworker.errors import ConfigurationError
from tests import bench_fakes

FAKE = "tests.bench_fakes:BENCHMARK"


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parent.parent)  # from where a turn imports the fakes


class Launches:
    """Takes turns at once, and remembers them."""

    def __init__(self, **turns: Turn) -> None:
        self.groups: list[list[str | None]] = []
        self.turns = turns

    def __call__(
        self, _place: str, contenders: Sequence[str | None], _settings: Settings, _benchmark: Benchmark
    ) -> list[Turn]:
        self.groups.append(list(contenders))
        return [self.turns.get(str(each), Turn({str(each): {"figure": 1.0}})) for each in contenders]


def take(
    launches: Launches, contenders: list[str], count: int, monkeypatch: pytest.MonkeyPatch, **changed: object
) -> rounds.Taken:
    monkeypatch.setattr(bench_fakes, "BENCHMARK", replace(bench_fakes.BENCHMARK, **changed))  # type: ignore[arg-type]
    told: list[str] = []
    found: dict[str, rounds.Taken] = {}
    rounds.take(
        {"fake": FAKE}, ["fake"], contenders, Settings(), count, lambda *each: told.append(each[0]), found, launches
    )
    assert len(told) == len(launches.groups)
    return found["fake"]


def test_contenders_take_turns_and_another_is_first_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    launches = Launches()
    taken = take(launches, ["a", "b", "c"], 3, monkeypatch)
    assert launches.groups == [["a"], ["b"], ["c"], ["b"], ["c"], ["a"], ["c"], ["a"], ["b"]]
    assert [list(each) for each in taken.rounds] == [["a", "b", "c"]] * 3


def test_contenders_that_do_nothing_have_their_turns_together(monkeypatch: pytest.MonkeyPatch) -> None:
    launches = Launches()
    taken = take(launches, ["a", "b"], 5, monkeypatch, together=True, rounds_max=1, also=("c",))
    assert launches.groups == [["a", "b", "c"]]
    assert len(taken.rounds) == 1


def test_who_does_not_offer_it_is_not_asked_again_and_a_failure_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    launches = Launches(a=Turn(not_offered="it has none"), b=Turn(failed="exit code 1: no"))
    taken = take(launches, ["a", "b", "c"], 2, monkeypatch)
    assert launches.groups == [["a"], ["b"], ["c"], ["c"], ["b"]]
    assert taken.not_offered == {"a": "it has none"}
    assert taken.failed == {"b": "exit code 1: no"}
    assert taken.rounds == [{"c": {"figure": 1.0}}] * 2


def test_a_turn_is_taken_in_an_interpreter_of_its_own() -> None:
    # What the benchmark prints there is not taken for its answer.
    turns = rounds.launch(FAKE, ["a", "breaks", "lacks"], Settings(n=3), bench_fakes.BENCHMARK)
    assert turns == [
        Turn({"a": {"figure": 3.0}}),
        Turn(failed="exit code 1: ValueError: it is broken"),
        Turn(not_offered="it has no such thing"),
    ]


def test_turns_that_are_taken_at_once_begin_together(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    pair = [f"{side} {tmp_path}/fifo" for side in ("r", "w")]
    turns = rounds.launch(FAKE, pair, Settings(), bench_fakes.BENCHMARK)
    assert [turn.failed for turn in turns] == ["", ""]


def test_a_turn_that_hangs_is_ended() -> None:
    assert rounds.launch(FAKE, ["hangs"], Settings(), bench_fakes.SHORT) == [Turn(failed="took more than 0.5 s")]


def test_a_benchmark_may_take_all_turns_itself() -> None:
    taken: dict[str, rounds.Taken] = {}
    rounds.take({"whole": "tests.bench_fakes:WHOLE"}, ["whole"], ["x"], Settings(), 1, lambda *_: None, taken)
    assert taken["whole"].rounds == [{"one": {"figure": 1.0}, "two": {"figure": 1.0}}]


@pytest.mark.parametrize("name", [name for name in PEERS if name in peers.chosen(None)[0]])
def test_each_peer_does_what_benchmarks_ask_of_it(name: str) -> None:
    (turn,) = rounds.launch("tests.bench_fakes:POOLS", [name], Settings(), bench_fakes.POOLS)
    assert turn == Turn({name: {"figure": 1.0}})


def test_peers_that_are_not_installed_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "_installed", lambda module: module not in ("ray", "loky"))
    there, absent = peers.chosen(["ray", "multiprocessing.Pool"])
    assert (there, absent) == (["mpworker", "multiprocessing.Pool"], ["ray"])
    there, absent = peers.chosen(None)
    assert absent == ["loky", "ray"]
    assert [*there, *absent] != list(PEERS)
    assert set(there) | set(absent) == set(PEERS)


def test_a_peer_that_nobody_knows_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"peers must be among ProcessPoolExecutor, .*, dask, not 'luky'"):
        peers.chosen(["luky"])


@pytest.mark.parametrize("place", [*SUITE.values(), *developers.DEVELOPERS.values()])
def test_every_benchmark_is_there_and_has_each_measure_once(place: str) -> None:
    benchmark = measure.located(place)
    names = [each.name for each in benchmark.measures]
    assert len(names) == len(set(names))
    assert (benchmark.run is None) != (benchmark.whole is None)
    assert benchmark.contenders is None or benchmark.base in benchmark.contenders
