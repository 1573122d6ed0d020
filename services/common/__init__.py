"""What every service speaks: wire types, errors, SSE framing, settings, logs and metrics.

Pure Python over pydantic and prometheus_client. May import none of the other rooms, and no Flask, torch or redis:
everything here can be driven by a unit test without a server.
"""
