"""How edits are found: what editors share."""
