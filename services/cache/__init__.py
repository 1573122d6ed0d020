"""Everything that touches Redis (or Valkey), which holds what may be lost, and what is on its way to SQL.

`connection` may be gone at any time. `quotas` reserves and settles by the scripts in `lua/`, in one exchange each;
`windows` are the limits, and `local` is the same rules without Redis. `responses` keeps answers, each as `kept` has it,
`semantic` finds them by their meaning, a `tape` has a stream's events and `tapes` are those in Redis. `ledger` is the
stream of calls that wait for SQL, `processes` who is alive to write them; `throttle` counts attempts to log in.

May import `services.common` alone; no other room imports redis.
"""
