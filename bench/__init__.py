"""Measurements of Forebay beside something else, in one run on one machine. Nothing of the product imports this."""
