"""Builds records of `unike_umm` (see `folder`)."""
