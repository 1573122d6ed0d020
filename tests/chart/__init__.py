"""The chart as `helm template` renders it: what is in it, what is not, what is refused, whether it fits together."""
