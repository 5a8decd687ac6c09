"""Analyses: looks into models, edits and states, one file each; see `errata.core.analysis`."""
