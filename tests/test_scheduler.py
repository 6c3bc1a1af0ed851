"""The table of transitions, and what the scheduler and others must agree on; the rules are in `test_scheduler_*.py`."""

import pytest
import transitions
from scheduler_steps import start
from scheduler_world import World

from mpworker.child.main import EXIT_CHANNEL_LOST
from mpworker.ipc import _native, codec
from mpworker.options import WorkerOptions
from mpworker.supervisor import deaths
from mpworker.supervisor import effects as rules
from mpworker.supervisor.lifecycle import EVENTS, FIRST_FINAL, STATES, Event, IllegalTransition

# ------------------------------------------------------------ the table of transitions


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.name)
@pytest.mark.parametrize("state", STATES, ids=STATES.get)
def test_what_the_table_does_not_know_is_refused(event: Event, state: int) -> None:
    if (event.name, state) in transitions.LEGAL:
        assert event[state] in STATES
    else:
        with pytest.raises(IllegalTransition, match=f"{event.name} of a task that is {STATES[state]}"):
            event[state]


def test_what_is_final_is_for_ever() -> None:
    assert all(state < FIRST_FINAL for _, state in transitions.LEGAL)
    assert {event[state] for event in EVENTS for state in event} == set(STATES)


def test_a_fault_of_the_scheduler_cannot_end_a_task_twice() -> None:
    world = World(1)
    task = world.submit()
    start(world).step()
    world.turn()
    world.scheduler._tasks[task.key] = task
    with pytest.raises(IllegalTransition, match="cancel of a task that is COMPLETED"):
        world.scheduler.cancel(task.key, world.now)


# ------------------------------------------------------------ what the scheduler and others must agree on


def test_the_statuses_are_those_of_the_wire() -> None:
    names = ["OK", "ERROR", "UNSERIALIZABLE", "EXITED", "INTERRUPTED", "CRASHED", "TIMED_OUT", "CANCELLED"]
    assert [getattr(rules, name) for name in names] == [getattr(codec, name) for name in names]
    assert rules.WELL == codec.DONE
    assert rules.SLOT_MAX == codec.MAX_SLOTS - 1


def test_a_child_can_say_the_first_five_statuses_and_no_others() -> None:
    assert {rules.OK, rules.ERROR, rules.UNSERIALIZABLE, rules.EXITED, rules.INTERRUPTED} == set(
        range(rules.INTERRUPTED + 1)
    )
    assert min(rules.CRASHED, rules.TIMED_OUT, rules.CANCELLED) > rules.INTERRUPTED


def test_the_claim_states_are_those_of_the_page() -> None:
    assert (rules.CLAIM_OFFERED, rules.CLAIM_CLAIMED, rules.CLAIM_REVOKED) == (
        _native.OFFERED,
        _native.CLAIMED,
        _native.REVOKED,
    )


def test_the_orderly_exits_are_those_of_the_child() -> None:
    assert deaths.ORDERLY_EXITS == (0, EXIT_CHANNEL_LOST)


def test_a_slot_fits_the_byte_it_travels_in() -> None:
    assert WorkerOptions(n=1).slots <= codec.MAX_SLOTS == 256
