"""The supervisor process: the one scheduler, and the processes it starts."""
