"""Everything that touches Redis (or Valkey): the connection, quotas, and the response cache.

Holds only what may be lost: a window of counters, answers that can be computed again. May import `services.common`
alone; no other room imports redis. Lua scripts stand beside the Python that calls them, in `lua/`.
"""
