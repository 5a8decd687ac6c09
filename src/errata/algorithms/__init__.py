"""What several editors share to find edits."""
