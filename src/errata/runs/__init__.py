"""Runs: planned, executed, scored and compared."""
