"""The objects world, on which micro-vlm is trained: named things with looks and facts."""
