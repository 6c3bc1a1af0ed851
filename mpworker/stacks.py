"""The stack that a killed child had written, as Python prints a traceback."""

import re
import traceback
from typing import Final

_FRAME: Final = re.compile(r'  File "(.*)", line (\d+|\?\?\?) in (.*)')
# In mpworker.child, with the ends of their files: what is above them is the task's.
_OURS: Final = {"run_task": "/child/task.py", "run_tasks": "/child/task.py", "run_range": "/child/chunk.py"}


def of_task(dump: str) -> str:
    """The stack from the task's function on, with the lines of source that this process can find.

    Args:
        dump: Text of `faulthandler`: the latest call first. The child wrote it, so it may be anything.
    """
    frames = [match.groups() for line in dump.splitlines() if (match := _FRAME.fullmatch(line))]
    ours = [index for index, (path, _, name) in enumerate(frames) if name in _OURS and path.endswith(_OURS[name])]
    of_the_task = frames[: ours[-1]] if ours else frames  # all, if there are more than `faulthandler` writes
    found = [(path, int(line) if line.isdecimal() else 0, name, None) for path, line, name in reversed(of_the_task)]
    return "".join(traceback.StackSummary.from_list(found).format())
