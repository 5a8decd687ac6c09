"""The drawing engine: figures, as `core.figure` describes them, become SVG."""
