"""Locate-then-edit (ROME, MEMIT, PMET, AlphaEdit): search a value, read keys, solve for dW."""
