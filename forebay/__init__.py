"""The operator's command: `forebay up`, `forebay status`, and the tools beside them.

A thin caller of the services: it starts them as processes and reads what they say about themselves. May import every
room below, but no Flask application: an application runs in its own process, under gunicorn.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("forebay")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"
