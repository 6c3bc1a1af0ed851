"""Other libraries on this pool, each in a file of its own that needs that library. None is imported by `mpworker`."""
