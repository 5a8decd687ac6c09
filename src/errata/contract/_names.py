"""How a property of the contract is called in reports."""

from __future__ import annotations

from collections.abc import Callable


def named(function: Callable[..., None]) -> str:
    """The first line of the property's docstring."""
    return (function.__doc__ or function.__name__).splitlines()[0].rstrip(".")
