"""Takes the rounds of benchmarks: who has a turn when, and what became of it."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Final, TypeAlias

from mpworker.bench.measure import Benchmark, Round, Settings, located

ALL: Final = "all contenders"  # of a benchmark whose turns are taken as one
_DIED_TEXT_MAX: Final = 300  # characters of what a turn that failed has said last
# A pool forks processes that have NumPy loaded; OpenBLAS would have started threads in them, and none is used here.
_ENVIRONMENT: Final = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Turn:
    """What became of a turn.

    Attributes:
        values: What was measured.
        failed: Why there is nothing of that.
        not_offered: Why it was not even tried.
    """

    values: Round = field(default_factory=dict)
    failed: str = ""
    not_offered: str = ""


# Of a benchmark's place, contenders (None: all that it has), settings and the benchmark: the turns, taken at once.
Launch: TypeAlias = Callable[[str, Sequence[str | None], Settings, Benchmark], list[Turn]]


@dataclass
class Taken:
    """All rounds of a benchmark.

    Attributes:
        benchmark: Which.
        rounds: What was measured in each.
        failed: Why a contender has nothing to show in some round, the last reason of each.
        not_offered: Who cannot do what was asked, and what it lacks.
    """

    benchmark: Benchmark
    rounds: list[Round] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    not_offered: dict[str, str] = field(default_factory=dict)


def launch(place: str, contenders: Sequence[str | None], settings: Settings, benchmark: Benchmark) -> list[Turn]:
    """Take turns in interpreters of their own, all at the same time."""
    started: list[subprocess.Popen[str]] = []
    try:
        for contender in contenders:
            process = subprocess.Popen(
                [sys.executable, "-m", "mpworker.bench.turn"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=None if benchmark.talks else subprocess.PIPE,
                env=os.environ | _ENVIRONMENT,
                start_new_session=True,  # so that whatever a turn has left is ended with it
                text=True,
            )
            started.append(process)
            asked = {"place": place, "contender": contender, "settings": asdict(settings)}
            assert process.stdin is not None
            process.stdin.write(json.dumps(asked))
            process.stdin.close()  # now: it begins when it has read all, and all are to begin together
            process.stdin = None
        return [_ended(process, benchmark.seconds_max) for process in started]
    finally:
        for process in started:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def _ended(process: "subprocess.Popen[str]", seconds_max: float) -> Turn:
    try:
        said, complaints = process.communicate(timeout=seconds_max)
    except subprocess.TimeoutExpired:
        return Turn(failed=f"took more than {seconds_max:g} s")
    if process.returncode != 0:
        last = (complaints or "").strip().rpartition("\n")[2]
        return Turn(failed=f"exit code {process.returncode}: {last[:_DIED_TEXT_MAX]}")
    return Turn(**json.loads(said))


def take(
    places: Mapping[str, str],
    names: Sequence[str],
    contenders: Sequence[str],
    settings: Settings,
    rounds: int,
    told: Callable[[str, int, int, str], None],
    found: dict[str, Taken],
    launch: Launch = launch,
) -> None:
    """Take all rounds of some benchmarks.

    Args:
        places: Of the benchmarks, by name: `module:name`.
        names: Which of them, in which order.
        contenders: Who takes part in those that do not have contenders of their own.
        settings: The same for all.
        rounds: How many of each, where the benchmark does not allow fewer.
        told: Called before each turn with the benchmark, the round, how many there are, and the contender.
        found: Gets what was measured in each, round by round, so that it is there whatever ends the run. A turn that
            failed is told of, and ends nothing else.
        launch: Takes the turns.
    """
    for name in names:
        benchmark = located(places[name])
        taken = found[name] = Taken(benchmark)
        all_of_them = [*(benchmark.contenders or contenders), *benchmark.also]
        count = min(rounds, benchmark.rounds_max or rounds)
        for number in range(count):
            there = [each for each in all_of_them if each not in taken.not_offered]
            values: Round = {}
            for group in _groups(benchmark, _turned(there, number)):
                told(name, number + 1, count, ", ".join(each for each in group if each))
                for contender, turn in zip(group, launch(places[name], group, settings, benchmark), strict=True):
                    values |= turn.values
                    if turn.failed:
                        taken.failed[contender or ALL] = turn.failed
                    if turn.not_offered:
                        taken.not_offered[contender or ALL] = turn.not_offered
            order = values if benchmark.whole is not None else all_of_them
            taken.rounds.append({each: values[each] for each in order if each in values})


def _turned(contenders: list[str], number: int) -> list[str]:
    """Another one is the first in each round: who follows whom may matter."""
    at = number % len(contenders) if contenders else 0
    return contenders[at:] + contenders[:at]


def _groups(benchmark: Benchmark, contenders: list[str]) -> list[list[str | None]]:
    """Who has a turn at the same time."""
    if benchmark.whole is not None:
        return [[None]]
    if benchmark.together:
        return [list[str | None](contenders)]
    return [[each] for each in contenders]
