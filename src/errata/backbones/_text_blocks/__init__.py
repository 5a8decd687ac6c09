"""Text blocks that are not an attention over their own tokens with a feed-forward network."""
