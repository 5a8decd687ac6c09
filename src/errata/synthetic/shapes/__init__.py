"""The shapes world, on which micro-umm is trained: objects, language, pictures."""
