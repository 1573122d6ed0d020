"""The inference pods as the gateway sees them: which there are, which one to take, how to talk to one.

`resolve` knows their URLs, `discover` looks at each and keeps the picture fresh, `choose` is pure arithmetic over it,
`exchange` is one HTTP exchange with one pod. Knows nothing of callers, quotas or caches.
"""
