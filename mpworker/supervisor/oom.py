"""Whose SIGKILL was it: has the kernel's out-of-memory killer taken a process of this memory cgroup?"""

import os


def _counter_file() -> tuple[str, str] | None:
    """The file that counts this cgroup's out-of-memory kills, version 2 or 1."""
    try:
        with open("/proc/self/cgroup") as file:
            lines = [line.rstrip("\n").split(":", 2) for line in file]
        with open("/proc/self/mountinfo") as file:
            mounts = [line.split() for line in file]
    except OSError:
        return None
    for _, controllers, path in lines:
        for fields in mounts:
            separator = fields.index("-")
            root, point, kind, options = fields[3], fields[4], fields[separator + 1], fields[separator + 3]
            if kind == "cgroup2" and controllers == "":
                name = "memory.events"
            elif kind == "cgroup" and controllers == "memory" and "memory" in options.split(","):
                name = "memory.oom_control"
            else:
                continue
            relative = os.path.relpath(path, root) if path.startswith(root) else path.lstrip("/")
            file_name = os.path.join(point, relative, name)
            if os.path.exists(file_name):
                return file_name, "oom_kill"
    return None


class OomKills:
    """Counts the kernel's out-of-memory kills, so that each explains one death.

    A kill may also have been a task's own subprocess, which nobody reports. So one that no child has died of within a
    look or two explains nothing any more, and a plain SIGKILL later is not taken for it.

    Args:
        source: The file that counts, and the key of its line; None finds out.
    """

    def __init__(self, source: tuple[str, str] | None = None) -> None:
        self._source = source or _counter_file()
        self._explained = self._seen = self._count()

    def _count(self) -> int:
        if self._source is None:
            return 0
        path, key = self._source
        try:
            with open(path) as file:
                for line in file:
                    name, _, value = line.partition(" ")
                    if name == key:
                        return int(value)
        except (OSError, ValueError):
            pass  # the cgroup was removed or hidden: the death is then reported as a plain SIGKILL
        return 0

    def look(self) -> None:
        """No child is dying. What was counted by the last such look has had its time: a death follows its kill soon."""
        self._explained = max(self._explained, self._seen)
        self._seen = self._count()

    def take(self) -> bool:
        """Is there a kill that no death has been explained by yet? Then it explains this one."""
        if self._count() > self._explained:
            self._explained += 1
            return True
        return False
