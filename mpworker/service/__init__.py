"""A supervisor as a service: where it listens, how it is configured and started, and how a program attaches to it."""
