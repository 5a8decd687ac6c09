"""The made-up world of micro-umm: its things, how they are spoken of, how they look."""
