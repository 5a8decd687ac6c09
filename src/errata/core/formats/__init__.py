"""Formats of data from outside: JSON Lines, and images that are given in memory. No torch."""
