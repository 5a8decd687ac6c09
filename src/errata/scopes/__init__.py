"""Scopes: which edit a question belongs to, or none. One file each."""
