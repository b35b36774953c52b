"""Runs beside each other: which there are, in what state, how two of them differ, and what of them can be removed."""
