"""Where things are in a model: one file per family of classes."""
