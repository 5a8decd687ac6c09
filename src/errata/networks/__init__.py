"""Neural networks that patches and algorithms both load."""
