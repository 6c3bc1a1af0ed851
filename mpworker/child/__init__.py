"""The child process: claims tasks, runs them, answers."""
