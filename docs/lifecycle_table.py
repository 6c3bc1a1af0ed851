"""Writes the diagram and the table of `lifecycle.md` from the scheduler's own: `python docs/lifecycle_table.py`."""

from pathlib import Path
from typing import Final

from mpworker.supervisor.lifecycle import EVENTS, STATES

PAGE: Final = Path(__file__).with_name("lifecycle.md")
_BEGIN: Final = "<!-- written by lifecycle_table.py -->\n"
_END: Final = "<!-- to here -->\n"


def rendered() -> str:
    """The part of the page that follows from the table."""
    diagram = ["```mermaid", "stateDiagram-v2", "    [*] --> QUEUED: submit"]
    arrows: dict[tuple[int, int], list[str]] = {}
    for event in EVENTS:
        for before, after in event.items():
            arrows.setdefault((before, after), []).append(event.name)
    diagram += [
        f"    {STATES[before]} --> {STATES[after]}: {', '.join(names)}" for (before, after), names in arrows.items()
    ]
    diagram += [f"    {name} --> [*]" for state, name in STATES.items() if not any(state in event for event in EVENTS)]
    diagram.append("```")
    rows = ["| event | from | to | when |", "|---|---|---|---|"]
    for event in EVENTS:
        states = ", ".join(STATES[state] for state in sorted(event))
        (after,) = set(event.values())
        rows.append(f"| {event.name} | {states} | {STATES[after]} | {event.why} |")
    return "\n".join([*diagram, "", *rows, ""])


def page(text: str) -> str:
    """The page with that part as it is to be."""
    head, _, rest = text.partition(_BEGIN)
    return f"{head}{_BEGIN}\n{rendered()}\n{_END}{rest.partition(_END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
