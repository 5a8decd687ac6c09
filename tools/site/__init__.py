"""The documentation site: generated pages and hooks of MkDocs (`make site`)."""
