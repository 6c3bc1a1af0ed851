"""The C headers alone, without Python: two processes, two threads, a killed writer, a hostile peer."""

import random
import subprocess
import tomllib

import pytest
from toolchain import ASAN, HERE, IPC, TSAN

SEED = random.randrange(2**32)


def passes(done) -> None:
    assert done.returncode == 0, f"seed {SEED}\n{done.stdout}\n{done.stderr}"


def test_ten_million_records_between_two_processes(drive) -> None:
    passes(drive("stream", 10_000_000, 65536, SEED))


@pytest.mark.parametrize("capacity", [256, 1024])
def test_a_ring_that_is_mostly_full_or_empty(drive, capacity: int) -> None:
    passes(drive("stream", 300_000, capacity, SEED))


@pytest.mark.parametrize("capacity", [256, 8192])
def test_no_data_race_in_ring_and_bell(drive, capacity: int) -> None:
    passes(drive("stream", 300_000, capacity, SEED, "threads", flags=TSAN))


def test_no_data_race_in_claims(drive) -> None:
    passes(drive("claims_race", 200_000, SEED, flags=TSAN))


def test_claim_and_revoke_have_one_winner(drive) -> None:
    passes(drive("claims_race", 1_500_000, SEED))


def test_a_killed_writer_leaves_whole_records(drive) -> None:
    passes(drive("kill", 400, SEED))


def test_no_bytes_hurt_reader_or_writer(drive) -> None:
    passes(drive("fuzz", 4, SEED, flags=ASAN))


def test_blocks_of_an_arena_never_overlap_and_no_memory_is_lost(drive) -> None:
    passes(drive("extents", 30_000, SEED, flags=ASAN))


def test_no_wake_up_is_lost(drive) -> None:
    passes(drive("dekker", 1_000_000, SEED))
    passes(drive("dekker", 1_000_000, SEED, "room"))


def test_nobody_spins_whose_waits_last_too_long_for_it(drive) -> None:
    passes(drive("habit", flags=ASAN))


def test_who_is_woken_late_spins_for_longer_and_nobody_else(drive) -> None:
    passes(drive("patience", flags=ASAN))


def test_sleepers_and_ringers_for_seconds(drive) -> None:
    passes(drive("pingpong", 4, SEED))


CAMPAIGNS = {
    "stream": ("stream", (200_000_000, 65536, SEED), ()),
    "small-ring": ("stream", (10_000_000, 256, SEED), ()),
    "stream-races": ("stream", (10_000_000, 4096, SEED, "threads"), TSAN),
    "claims": ("claims_race", (30_000_000, SEED), ()),
    "claims-races": ("claims_race", (10_000_000, SEED), TSAN),
    "kills": ("kill", (20_000, SEED), ()),
    "fuzz": ("fuzz", (180, SEED), ASAN),
    "fuzz-optimized": ("fuzz", (180, ~SEED), (*ASAN, "-O2")),  # a compiler that optimizes more may fetch more than once
    "wake-ups": ("dekker", (50_000_000, SEED), ()),
    "wake-ups-for-room": ("dekker", (50_000_000, SEED, "room"), ()),
    "sleepers": ("pingpong", (60, SEED), ()),
}


@pytest.mark.deep
@pytest.mark.parametrize("campaign", CAMPAIGNS)
def test_a_campaign(drive, campaign: str) -> None:
    name, arguments, flags = CAMPAIGNS[campaign]
    passes(drive(name, *arguments, flags=flags))


MUTANTS = tomllib.loads((HERE / "mutants.toml").read_text())
SANITIZERS = {"": (), "thread": TSAN, "address": ASAN}


@pytest.mark.deep
@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_broken_line_is_found(drive, tmp_path, mutant: str) -> None:
    spec = MUTANTS[mutant]
    for file in IPC.glob("*.h"):
        text = file.read_text()
        if file.name == spec["header"]:
            assert text.count(spec["line"]) == 1, "the mutant no longer fits the code"
            text = text.replace(spec["line"], spec["becomes"])
        (tmp_path / file.name).write_text(text)
    driver, *arguments = spec["run"].replace("SEED", str(SEED)).split()
    flags = (
        *SANITIZERS[spec.get("under", "")],
        *(f"-Wno-unused-{what}" for what in ("variable", "parameter", "function")),
    )
    hangs = spec.get("hangs", False)
    try:
        done = drive(driver, *arguments, flags=flags, headers=tmp_path, timeout=60 if hangs else 900, STALL_MS="2000")
    except subprocess.TimeoutExpired:
        assert hangs
        return
    assert done.returncode != 0, f"seed {SEED}: not noticed\n{done.stdout}"
