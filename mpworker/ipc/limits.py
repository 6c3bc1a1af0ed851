"""What to say when a process can have no more of something."""

import errno
import os

# What each limit is asked by: `resource` would have to be imported, which takes a descriptor.
_LIMITS = {
    errno.EMFILE: ("SC_OPEN_MAX", "RLIMIT_NOFILE allows {} open descriptors"),
    errno.EAGAIN: ("SC_CHILD_MAX", "RLIMIT_NPROC allows this user {} processes, and a cgroup may allow fewer"),
    errno.EFBIG: ("", "RLIMIT_FSIZE bounds shared memory, too"),
    errno.ENFILE: ("", ""),
    errno.ENOMEM: ("", ""),
    errno.ENOSPC: ("", ""),
}


def explained(error: OSError, what: str) -> OSError:
    """The error of a call for which nothing was left, with what it was for and the limit; any other as it is."""
    if error.errno not in _LIMITS:
        return error
    name, text = _LIMITS[error.errno]
    limit = os.sysconf(name) if name else -1
    told = f" ({text.format(limit)})" if text and (limit >= 0 or not name) else ""
    return OSError(error.errno, f"{what}: {error.strerror}{told}")
