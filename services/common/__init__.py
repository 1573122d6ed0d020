"""What every service speaks: `wire` types, `errors`, `sse` framing, `settings`, `metrics`, `telemetry` (logs, and the
identity of a request), `orca` (a pod's report of its load) and `ids`.

Pure Python over pydantic and prometheus_client. May import none of the other rooms, and no Flask, torch or redis:
everything here can be driven by a unit test without a server.
"""
