"""Scores of finished runs as tables, as plots, and as one self-contained HTML file."""
