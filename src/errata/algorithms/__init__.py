"""How edits are found: what several editors share."""
