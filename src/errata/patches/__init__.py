"""The shapes of patches, one file each; a saved patch names its shape by the file's name."""
