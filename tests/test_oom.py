"""Which SIGKILL was the kernel's: a counter of the memory cgroup, read at looks and at deaths."""

from pathlib import Path

import pytest

from mpworker.supervisor.oom import OomKills


@pytest.fixture
def counter(tmp_path: Path) -> Path:
    path = tmp_path / "memory.events"
    count(path, 7)
    return path


def count(path: Path, kills: int) -> None:
    path.write_text(f"low 0\noom 3\noom_kill {kills}\noom_group_kill 0\n")


def test_each_kill_explains_one_death(counter: Path) -> None:
    kills = OomKills((str(counter), "oom_kill"))
    assert not kills.take()
    count(counter, 9)
    assert [kills.take() for _ in range(3)] == [True, True, False]


def test_a_kill_that_no_child_died_of_explains_nothing_later(counter: Path) -> None:
    kills = OomKills((str(counter), "oom_kill"))
    count(counter, 8)
    kills.look()
    kills.look()
    assert not kills.take()
    count(counter, 9)
    assert kills.take()


def test_a_kill_just_before_a_look_explains_the_death_that_follows_it(counter: Path) -> None:
    kills = OomKills((str(counter), "oom_kill"))
    kills.look()
    count(counter, 8)
    kills.look()
    assert kills.take()
    assert not kills.take()


def test_a_kill_that_was_explained_is_not_forgotten_twice(counter: Path) -> None:
    kills = OomKills((str(counter), "oom_kill"))
    count(counter, 8)
    assert kills.take()
    kills.look()
    kills.look()
    count(counter, 9)
    assert kills.take()


def test_without_a_counter_nothing_is_the_kernels(tmp_path: Path) -> None:
    kills = OomKills((str(tmp_path / "none"), "oom_kill"))
    kills.look()
    assert not kills.take()
