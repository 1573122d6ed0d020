"""The engine beside its rivals: `make bench-engine`."""
