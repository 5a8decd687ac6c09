"""Answers many questions with one model at the same time. No network."""
