"""The operator's command: `forebay up`, `forebay status`, and the tools beside them.

`cli` reads the command line. `up` runs the stack: `checks` what can go wrong beforehand, `fleet` says which processes
there are, `supervise` keeps them running, each a `child` that `spawn` starts, `probe` asks, `restart` gives up on and
`logs` are kept of; `state` is what stays on disk. `status`, `bench` and `explain` look at a running stack.

A thin caller of the services: it starts them as processes and reads what they say about themselves. May import every
room below, but no Flask application: an application runs in its own process, under gunicorn.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("forebay")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"
