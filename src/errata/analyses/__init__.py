"""Analyses: what an edit does inside the model, and why. One file each, run by `errata analyze`."""
