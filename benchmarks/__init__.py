"""mpworker beside the pools of the standard library: the same tasks, the same machine, the same run."""
