"""The protocols under a model checker: every interleaving, with memory that reorders. See the .pml files."""

import re
from pathlib import Path

import pytest
from toolchain import HERE, run

pytestmark = pytest.mark.deep

ORDERS = ["NO_TAIL_RELEASE", "NO_TAIL_ACQUIRE", "NO_HEAD_RELEASE"]
BROKEN_WAKEUP = ["NO_ARM_FENCE", "NO_RING_FENCE", "NO_SECOND_LOOK", "LATE_ARM", "LATE_WANT"]
BROKEN_CLAIM = ["ANY_GENERATION", "NO_EXCHANGE", "LATE_OFFER", "NO_RELEASE", "LATE_TIME"]


def errors(install, model: str, defines: list[str], directory: Path) -> int:
    """How many errors spin finds in all reachable states: 0 or 1, as it stops at the first."""
    install("spin", "cc")
    steps = [
        ["spin", "-a", *(f"-D{name}" for name in defines), HERE / model],
        ["cc", "-O2", "-w", "-DSAFETY", "-DCOLLAPSE", "pan.c", "-o", "pan"],
        ["./pan", "-m1000000", "-w22"],
    ]
    for step in steps:
        done = run(step, cwd=directory, timeout=900)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "max search depth too small" not in done.stdout
    assert re.search(r"[1-9]\d* states, stored", done.stdout), done.stdout
    found = re.search(r"errors: (\d+)", done.stdout)
    assert found, done.stdout
    return int(found[1])


@pytest.mark.parametrize("memory", [[], ["WEAK"]], ids=["x86", "weak"])
def test_no_wake_up_is_lost(install, tmp_path: Path, memory: list[str]) -> None:
    assert errors(install, "wakeup.pml", memory, tmp_path) == 0


@pytest.mark.parametrize("broken", BROKEN_WAKEUP)
@pytest.mark.parametrize("memory", [[], ["WEAK"]], ids=["x86", "weak"])
def test_the_model_finds_a_lost_wake_up(install, tmp_path: Path, memory: list[str], broken: str) -> None:
    assert errors(install, "wakeup.pml", [*memory, broken], tmp_path) == 1


@pytest.mark.parametrize("broken", ORDERS)
def test_the_model_finds_a_record_that_is_not_whole(install, tmp_path: Path, broken: str) -> None:
    assert errors(install, "wakeup.pml", ["WEAK", broken], tmp_path) == 1


def test_each_offer_has_one_winner(install, tmp_path: Path) -> None:
    assert errors(install, "claims.pml", [], tmp_path) == 0


def test_no_item_begins_after_a_halt(install, tmp_path: Path) -> None:
    assert errors(install, "halt.pml", [], tmp_path) == 0


@pytest.mark.parametrize("broken", ["NO_STEP_FENCE", "NO_HALT_FENCE"])
def test_the_model_finds_a_halt_that_comes_late(install, tmp_path: Path, broken: str) -> None:
    assert errors(install, "halt.pml", [broken], tmp_path) == 1


@pytest.mark.parametrize("broken", BROKEN_CLAIM)
def test_the_model_finds_a_broken_claim(install, tmp_path: Path, broken: str) -> None:
    assert errors(install, "claims.pml", [broken], tmp_path) == 1
