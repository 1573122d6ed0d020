"""Everything that touches Redis (or Valkey): the connection, quotas, the response cache, the ledger's stream.

Holds what may be lost (a window of counters, answers that can be computed again), and what is on its way to SQL. May
import `services.common` alone; no other room imports redis. Lua scripts stand beside the Python that calls them, in
`lua/`.
"""
