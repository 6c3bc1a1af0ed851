"""The capacity planner: a load, replayed in virtual time by the scheduler of the pool itself.

    trace.py, described.py   a load: from a recording, or from a description
    world.py                 children, cores and the supervisor's time, for the scheduler to act on
    simulation.py            one load on one pool, and what came of it
    study.py                 many of these: how many children, how sure, what a rate does, how many machines
    results.py               the plan as a table, JSON, HTML and a configuration

What decides who starts when is `mpworker.supervisor.places.Places`, the very class that a supervisor has; nothing of it
is rewritten here. What is a model is the world around it: how long calls take, how children share cores, and what the
supervisor's own work costs. `docs/planning.md` tells what that leaves out.
"""
