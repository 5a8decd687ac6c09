"""Contracts: what a backbone, editor, patch, benchmark, metric, protocol and judge are."""
