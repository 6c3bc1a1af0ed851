"""The ids that users have given to their tasks, as the supervisor keeps them."""

from mpworker.supervisor.ids import Ids

REMEMBERED = 100


def test_ids_of_what_is_forgotten_go_in_bulk() -> None:
    there: set[int] = set()
    looks = 0

    def known() -> set[int]:
        nonlocal looks
        looks += 1
        return there

    ids = Ids(known)
    for key in range(10_000):
        there = set(range(key - REMEMBERED, key))
        ids.add(f"case {key}", key)
        assert ids.find(f"case {max(0, key - REMEMBERED)}") == max(0, key - REMEMBERED), "what is remembered is found"
        assert len(ids) <= 2 * REMEMBERED + 128
    assert looks <= 10_000 / REMEMBERED, "a look at all of them costs each one little"
    assert ids.find("case 5") is None


def test_the_last_one_with_an_id_has_it() -> None:
    ids = Ids(tuple)
    ids.add("case", 1)
    ids.add("case", 2)
    assert ids.find("case") == 2
    assert ids.find("another") is None
