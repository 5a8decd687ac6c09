"""Runs: planned once, executed in resumable units, scored offline."""
