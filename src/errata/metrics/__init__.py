"""Scores computed offline from answers. One file per metric, named as it is."""
