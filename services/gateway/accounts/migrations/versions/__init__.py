"""One file a version, in a line."""
