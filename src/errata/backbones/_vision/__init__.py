"""Images and the processors of model families."""
