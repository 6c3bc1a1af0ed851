"""What `record=` takes: the file of a trace."""

import os
from typing import Any

from mpworker.errors import ConfigurationError, InvalidArgument
from mpworker.ipc.traces import open_trace


def check_record(value: Any) -> str | None:
    """A file that can be written, as an absolute path; None for none.

    Raises:
        InvalidArgument: It is no path.
        ConfigurationError: It cannot be written.
    """
    if value is None:
        return None
    path = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(path, str):
        raise InvalidArgument(f"record must be the path of a file or None, not {value!r}")
    if not path:
        raise ConfigurationError("record is empty: name a file")
    try:
        os.close(open_trace(os.path.abspath(path)))
    except (OSError, ValueError) as error:  # a path with a null character, say
        raise ConfigurationError(f"record={path!r} cannot be written: {error}") from error
    return os.path.abspath(path)
