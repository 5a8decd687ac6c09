"""What several commands share: options, printing, progress, edits, the model."""
