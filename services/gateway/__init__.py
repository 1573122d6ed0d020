"""The gateway: the Flask application in front of the inference pods.

`request` holds the way of a request in five calls; each step has a file of its own name:

    identify  whose request it is; `identity/` checks its credential against the `accounts/`
    admit     whether it may be now: `estimate`, `prices`; `budgets` brings Redis what the ledger knows
    recall/   whether its answer is there already, or coming
    dispatch  a pod for it: `trip` is the way over the pods, `leg` one try at one, `hold` the wait for the first,
              `resume` how a stream goes on at another; `upstreams/` is all that is known of pods
    settle    true counts, the `ledger/`, one line of log; `outcome` names how a call ended, `spans` traces it

Before them `policy` bounds what may come in, `moderation` asks about it (`sidemodel`), `aliases` and `catalogue` say
which models there are. On the way back `relay` hands a stream on, `observe` reads along, `outgoing` writes, `ending`
says why it ends early, and `hangup` sees the client go. `call` has the values that go from step to step, `route` where
one went and why.

`app` makes the `parts` and registers the `routes/`, which `openapi/` describes; `bootstrap` is the first start, `drain`
the end of a process, `pulse` looks whether Redis and SQL are there, `gunicorn_conf` runs it all.

May import `services.cache`, `services.web` and `services.common`; never the inference service, which it knows only on
the wire, and no redis of its own.
"""
