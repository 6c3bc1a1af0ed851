"""`ProcessWorker(debug=True)`: each task runs in this process, in the thread that submits it, for a debugger.

What shall fail here as it fails in a pool must go the same way. So the client, its futures and its maps are those of a
pool; pickles are made and read; and a task is run by the code of a child. Only what is between the two is another: in
place of rings, a *supervisor* that is a few dictionaries. A push runs the task and keeps the answer to be read; a wait
runs what is still to be run.

An item of a `map` is run when its result is taken, and the next one is not read before, so that a debugger sees the
program in an order that makes sense: a map has one chunk of one item under way, which waits in `chunks`.
"""
