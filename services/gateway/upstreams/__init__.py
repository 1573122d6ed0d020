"""The inference pods as the gateway sees them: which there are, which one to take, how to talk to one.

`resolve` and `slices` know where they are, an `endpoint` each; `look` asks one how it is, `discover` keeps the picture
fresh, `upstream` is a pod and one request's stay at it. `choose`, `affinity`, `breaker`, `budget` and `outlook` are
pure arithmetic over the picture. `exchange` is one HTTP exchange with one pod, `http1` its bytes. Knows nothing of
callers, quotas or caches.
"""
