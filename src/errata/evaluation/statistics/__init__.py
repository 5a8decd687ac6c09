"""Means with intervals, over independent units and over several runs."""
