"""The arithmetic of the measurements."""
