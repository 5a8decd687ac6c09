"""Judges: each looks at saved pictures and returns verdicts. One file per judge."""
