"""What runs found, as tables and as one self-contained HTML file."""
