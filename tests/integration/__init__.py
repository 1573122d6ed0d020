"""One real service at a time: a gateway before scripted pods, a pod with a model, accounts on PostgreSQL."""
