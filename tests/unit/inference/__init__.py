"""The pod and its engine, which runs for real over tiny models with random weights."""
