"""What every refusal of bad input must be."""

from typing import Any

import pytest

from mpworker.errors import ConfigurationError, MPWorkerError


def refuse(call: Any, *args: Any, says: list[str], kind: type[Exception] = ConfigurationError, **kwargs: Any) -> None:
    """The call raises one of our errors, which says in one line what is asked for."""
    with pytest.raises(kind) as caught:
        call(*args, **kwargs)
    assert isinstance(caught.value, MPWorkerError)
    message = str(caught.value)
    assert "\n" not in message
    assert [word for word in says if word not in message] == [], message
