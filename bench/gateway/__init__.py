"""The gateway alone, before a pod that only pretends to compute: what a request, a chunk and an open stream cost."""
