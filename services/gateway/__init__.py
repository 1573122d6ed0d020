"""The gateway: the Flask application in front of the inference pods.

`request.py` holds the way of a request in five calls; each step has a module of its own name. May import
`services.cache`, `services.web` and `services.common`; never the inference service, which it knows only on the wire,
and no redis of its own.
"""
