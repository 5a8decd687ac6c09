"""Tiny models that draw, with random weights, of the real classes."""
