"""What the examples of the scheduler's rules are made from: steps in a `scheduler_world`, and looks at its log."""

from scheduler_world import Child, World

from mpworker.supervisor.registry import Function, Task


def function(estimate_ns: int = 0) -> Function:
    made = Function(1, b"function")
    made.estimate_ns = estimate_ns
    return made


def outcome(world: World, task: Task, item: int | None = None) -> object:
    return world.accepted[task.key].outcomes.get(item)


def outcomes(world: World, task: Task) -> list[object]:
    found = world.accepted[task.key].outcomes
    return [found.get(item) for item in range(task.items)]


def offered(world: World, number: int = 0) -> list[int]:
    """The keys of what a child was offered, in order."""
    return [offer.key for offer in world.children[number].inbox]


def start(world: World, number: int = 0, steps: int = 1) -> Child:
    """Dispatch, and have a child claim its first offer; a chunk's first item begins with the second step."""
    world.turn()
    child = world.children[number]
    for _ in range(steps):
        child.step()
    return child


def wait(world: World, seconds: float) -> None:
    """Time goes by; the supervisor does each timer when it is due."""
    end = world.now + seconds
    while (at := world.scheduler.next_timer()) is not None and at <= end:
        world.advance(max(0.0, at - world.now))
        world.turn()
        assert world.scheduler.next_timer() != at or at > world.now, "a timer does nothing"
    world.advance(end - world.now)


def kills(world: World) -> list[object]:
    return [entry[2] for entry in world.log if entry[0] == "kill"]


def interrupts(world: World) -> int:
    return sum(entry[0] == "interrupt" for entry in world.log)


def last_report(world: World) -> dict[str, object]:
    return world.reports[-1][4]


def dismissed(world: World) -> list[object]:
    return [entry[1] for entry in world.log if entry[0] == "dismiss"]
