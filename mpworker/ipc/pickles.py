"""Pickle as the processes of a pool import it: `from mpworker.ipc.pickles import pickle`.

The standard library's `pickle` is the face of the C module `_pickle`, beside the same once more in Python, and imports
`re` and by it `enum`. All that is used here is in C.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    import pickle
else:
    import _pickle as pickle

__all__ = ["pickle"]
