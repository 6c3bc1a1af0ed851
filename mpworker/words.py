"""What a supervisor is told of its client whenever it has changed: a word for each of two states.

Like `mpworker.reader` this takes no lock; the same rules hold.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from mpworker.ipc import codec

if TYPE_CHECKING:
    from mpworker.client import Client


class Word:
    """One thing that the supervisor is to know.

    Args:
        client: Of whom.
        is_so: Looks whether it is so now.
        yes: The request that says that it is.
        no: The one that says that it is not, as the supervisor believes at first.

    Attributes:
        told: Which of the two was said last; None while that is not known.
    """

    def __init__(self, client: "Client", is_so: Callable[[], bool], yes: bytes, no: bytes) -> None:
        self._client = client
        self._is_so = is_so
        self._yes = yes
        self._no = no
        self.told: bool | None = False
        self._tells = 0

    def tell(self) -> bool:
        """Say what is so, if that has changed; False if there is no room to say it.

        Whoever has changed it calls this, which looks again after each word, so the last one to look has seen what is
        so. Of two who speak at the same time the last one's word is noted; of one who was interrupted none is, and it
        is said again.
        """
        client = self._client
        while not client.is_fork():
            wanted = self._is_so()
            data = self._yes if wanted else self._no
            if self.told is wanted:
                return True
            self.told = None
            self._tells = mine = self._tells + 1
            if not client._push(codec.REQUEST, 0, 0, 0, 0, data):  # no call since the store
                return False
            if self._tells == mine:
                self.told = wanted
            client._ring()
        return True
