"""What is left of tasks when their supervisor has died, with all its children: roll, ledger, and what they say."""

import mmap
import os
import random
from collections.abc import Iterator
from itertools import pairwise

import pytest

from mpworker.ipc import _native
from mpworker.ipc.codec import CANCELLED, CONTEXT_SHIFT, OK
from mpworker.ipc.ledger import TRIED_AGAIN, Ledger
from mpworker.ipc.remains import Entry, Offer, claimed, noted
from mpworker.ipc.roll import Roll, region_bytes
from mpworker.service.estate import Estate

SLOTS = 4
CLIENT = 3 << CONTEXT_SHIFT


@pytest.fixture
def roll() -> Iterator[Roll]:
    made = Roll(SLOTS)
    yield made
    made.close()


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    made = Ledger()
    yield made
    made.close()


def test_of_what_was_offered_it_says_what_was_claimed(roll: Roll) -> None:
    (_, one), (_, other) = roll.take(), roll.take()
    for slot, generation, task, items in ((0, 1, 5, 0), (1, 2, 6, 0), (2, 3, 7, 4 | 9 << 32)):
        one.offer(slot, generation, task, items)
    other.offer(3, 4, CLIENT | 8, 0)
    assert not list(claimed(roll.fd, SLOTS))
    assert one.claim(0, 1)
    assert one.revoke(1, 2)
    assert one.claim(2, 3)
    one.run(2, 3, abs, [1] * 9, [], 4, 6, False, 1 << 62)
    assert other.claim(3, 4)
    assert list(claimed(roll.fd, SLOTS)) == [Offer(5, 1, 0, 0, 0), Offer(7, 3, 4, 9, 6), Offer(CLIENT | 8, 4, 0, 0, 0)]


def test_a_note_without_its_offer_says_nothing_and_nonsense_says_that_it_had_begun(roll: Roll) -> None:
    at, page = roll.take()
    page.offer(0, 1, 5, 0)
    assert page.claim(0, 1)
    memory = mmap.mmap(roll.fd, region_bytes(SLOTS), offset=at)
    notes = memory.find((1).to_bytes(8, "little") + (5).to_bytes(8, "little"))
    memory[notes : notes + 16] = (2).to_bytes(8, "little") + (6).to_bytes(8, "little")  # it died before the offer
    assert not list(claimed(roll.fd, SLOTS))
    word = _native.CLAIMS_HEADER_BYTES
    memory[word : word + 8] = b"\xff" * 8
    assert [offer.task for offer in claimed(roll.fd, SLOTS)] == [6]


def test_a_region_that_is_used_anew_says_nothing_of_before(roll: Roll) -> None:
    at, page = roll.take()
    page.offer(0, 1, 5, 0)
    assert page.claim(0, 1)
    del page
    roll.give(at)
    assert roll.take()[0] == at
    assert not list(claimed(roll.fd, SLOTS))


def test_who_may_read_it_cannot_write_to_it(roll: Roll) -> None:
    roll.take()
    fd = roll.readable()
    try:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.pwrite(fd, b"x", 0)
        with pytest.raises(PermissionError):
            mmap.mmap(fd, 4096)
        assert os.fstat(fd).st_mode & 0o777 == 0o600
    finally:
        os.close(fd)
    with pytest.raises(PermissionError):
        os.ftruncate(roll.fd, 0)


def test_a_child_has_its_page_and_no_notes() -> None:
    page = _native.Claims(mmap.mmap(-1, 4096), SLOTS)
    page.offer(0, 1)
    page.offer(0, 2, 5, 6)
    noting = _native.Claims(mmap.mmap(-1, 8192), SLOTS, 4096)
    with pytest.raises(TypeError):
        noting.offer(0, 1)
    with pytest.raises(ValueError, match="what is offered"):
        _native.Claims(mmap.mmap(-1, 4096), SLOTS, 4096)


# ------------------------------------------------------------ the ledger


def entry(task: int, generation: int = 1, status: int = TRIED_AGAIN) -> Entry:
    return Entry(task, generation, 0, 0, 1, 1, 0, status)


def test_what_was_written_is_read(ledger: Ledger) -> None:
    assert not list(noted(ledger.fds))
    ledger.note(entry(1))
    assert ledger.unwritten
    assert not list(noted(ledger.fds))
    ledger.write(lambda _: True)
    assert not ledger.unwritten
    ledger.note(entry(2, status=OK))
    ledger.write(lambda _: True)
    assert list(noted(ledger.fds)) == [entry(1), entry(2, status=OK)]
    ledger.close()
    ledger.note(entry(3))
    ledger.write(lambda _: True)


def test_it_stays_as_small_as_what_it_has_to_say(ledger: Ledger) -> None:
    for number in range(20_000):
        ledger.note(entry(number))
        ledger.write(lambda entry, number=number: entry[0] > number - 10)  # type: ignore[misc]
        assert [each.task for each in noted(ledger.fds)][-1] == number
    assert max(os.fstat(fd).st_size for fd in ledger.fds) < 100_000


def test_whenever_the_supervisor_dies_it_is_whole(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    pwrite, ftruncate = os.pwrite, os.ftruncate
    ledger._limit = 10
    expected: list[int] = []

    def look() -> None:
        found = [each.task for each in noted(ledger.fds)]
        assert set(written) <= set(found) <= {*written, *expected}, calls
        calls.append(1)

    def written_then(fd: int, data: bytes, at: int) -> int:
        look()
        done = pwrite(fd, data, at)
        look()
        return done

    def truncated_then(fd: int, size: int) -> None:
        look()
        ftruncate(fd, size)
        look()

    monkeypatch.setattr(os, "pwrite", written_then)
    monkeypatch.setattr(os, "ftruncate", truncated_then)
    written: list[int] = []
    for number in range(100):
        expected.append(number)
        ledger.note(entry(number))
        written = [each for each in written if each > number - 5]
        ledger.write(lambda entry, number=number: entry[0] > number - 5)  # type: ignore[misc]
        written = [*written, number]
    assert len(calls) > 200


def test_a_client_that_spoils_its_own_is_told_of_no_other(ledger: Ledger) -> None:
    ledger.note(entry(1))
    ledger.write(lambda _: True)
    for fd in ledger.fds:
        os.pwrite(fd, b"\xff" * 100, 0)
    assert len(list(noted(ledger.fds))) == 2
    for fd in ledger.fds:
        os.ftruncate(fd, 0)
    assert not list(noted(ledger.fds))


# ------------------------------------------------------------ what is made of them


def estate(offers: list[Offer] = [], entries: list[Entry] = [], known: dict[int, list[list[int]]] = {}) -> Estate:  # noqa: B006
    return Estate(3, offers, entries, known)


def offer(task: int, generation: int, start: int = 0, stop: int = 0, cursor: int = 0) -> Offer:
    return Offer(CLIENT | task, generation, start, stop, cursor)


def test_of_a_task() -> None:
    assert estate().of_task(1) == [[0, 0, 0, 0, 0]]
    begun = estate([offer(1, 7)])
    assert begun.of_task(1) == [[0, 0, 1, 0, 1]]
    assert begun.of_task(2) == [[0, 0, 0, 0, 0]]
    assert estate([Offer(4 << CONTEXT_SHIFT | 1, 7, 0, 0, 0)]).of_task(1) == [[0, 0, 0, 0, 0]], "it is another client's"


def test_an_attempt_that_the_ledger_knows_counts_once() -> None:
    failed = Entry(1, 7, 0, 0, 1, 1, 0, TRIED_AGAIN)
    assert estate([offer(1, 7)], [failed]).of_task(1) == [[0, 0, 1, 1, 0]]
    assert estate([offer(1, 9)], [failed]).of_task(1) == [[0, 0, 2, 1, 1]], "another one had begun"
    told_late = Entry(1, 9, 0, 0, 1, 1, 0, OK)
    assert estate([offer(1, 9)], [failed, told_late]).of_task(1) == [[0, 0, 2, 1, 1]], "its outcome is lost"
    assert estate([], [Entry(1, 0, 0, 0, 0, 0, 0, CANCELLED)]).was_cancelled(1)
    assert not estate([], [failed]).was_cancelled(1)
    assert not estate().was_cancelled(1)


def test_what_was_known_before_is_added_to() -> None:
    known = {1: [[0, 0, 2, 1, 1]]}
    assert estate(known=known).of_task(1) == [[0, 0, 2, 1, 1]]
    assert estate([offer(1, 3)], known=known).of_task(1) == [[0, 0, 3, 1, 2]]
    assert estate([offer(1, 3)], [Entry(1, 3, 0, 0, 3, 2, 1, TRIED_AGAIN)], known).of_task(1) == [[0, 0, 3, 2, 1]]


def test_of_items() -> None:
    assert estate().of_items(1, [(0, 10), (20, 30)]) == [[0, 10, 0, 0, 0], [20, 30, 0, 0, 0]]
    running = estate([offer(1, 5, 2, 9, cursor=6)])
    assert running.of_items(1, [(0, 10)]) == [[0, 2, 0, 0, 0], [2, 6, 1, 0, 1], [6, 10, 0, 0, 0]]
    assert running.of_items(1, [(4, 10)]) == [[4, 6, 1, 0, 1], [6, 10, 0, 0, 0]], "the rest of them was told"
    assert running.of_items(1, []) == []
    assert estate([offer(1, 5, 2, 9)]).of_items(1, [(0, 10)]) == [[0, 10, 0, 0, 0]], "they were being unpickled"
    assert estate([offer(1, 5, 2, 3)]).of_items(1, [(2, 4)]) == [[2, 3, 1, 0, 1], [3, 4, 0, 0, 0]]


def test_of_items_whose_outcome_had_no_room_or_that_were_tried_again() -> None:
    lost = Entry(1, 5, 2, 4, 0, 0, 0, OK)
    again = Entry(1, 5, 4, 5, 1, 1, 0, TRIED_AGAIN)
    offers = [offer(1, 5, 2, 9, cursor=7)]
    assert estate(offers, [lost, again]).of_items(1, [(0, 10)]) == [
        *([0, 2, 0, 0, 0], [2, 4, 1, 0, 1], [4, 5, 1, 1, 0], [5, 7, 1, 0, 1], [7, 10, 0, 0, 0]),
    ]
    assert estate([*offers, offer(1, 6, 4, 5, cursor=5)], [lost, again]).of_items(1, [(4, 5)]) == [[4, 5, 2, 1, 1]]


def test_ranges_are_whole_in_order_and_no_longer_than_they_must_be() -> None:
    rng = random.Random(seed := random.randrange(2**32))
    for _ in range(300):
        offers, entries = [], []
        for generation in range(1, rng.randrange(2, 8)):
            start = rng.randrange(50)
            stop = rng.randrange(start + 1, 60)
            if rng.random() < 0.5:
                offers.append(offer(1, generation, start, stop, rng.choice((0, rng.randrange(start + 1, stop + 1)))))
            else:
                counts = rng.randrange(3), rng.randrange(3), rng.randrange(3)
                entries.append(Entry(1, generation, start, stop, *counts, rng.choice((OK, TRIED_AGAIN))))
        made = estate(offers, entries)
        unsettled = [(0, 7), (9, 31), (40, 60)]
        parts = made.of_items(1, unsettled)
        covered = [item for start, stop, *_ in parts for item in range(start, stop)]
        assert covered == [item for start, stop in unsettled for item in range(start, stop)], f"seed {seed}"
        for start, stop, *counts in parts:
            for item in range(start, stop):
                assert made.of_items(1, [(item, item + 1)]) == [[item, item + 1, *counts]], f"seed {seed}"
        for left, right in pairwise(parts):
            assert left[1] < right[0] or left[2:] != right[2:], f"seed {seed}"


def test_files_have_no_name(ledger: Ledger, roll: Roll) -> None:
    for fd in (*ledger.fds, roll.fd):
        assert os.readlink(f"/proc/self/fd/{fd}").startswith("/memfd:mpworker-")
