"""Why a model cannot be served, in one sentence each, for the operator."""

from __future__ import annotations


class SourceError(Exception):
    """The model cannot be had."""


class UnsupportedModel(SourceError):
    """The model cannot be computed in a packed batch."""
