"""Code of a model that its user has installed: errata ships none of it, and runs it on request."""

from __future__ import annotations

import importlib
from typing import Any

from errata.core.errors import BadBackbone, MissingExtra


def installed(module: str, *, model: str, how: str, trusted: bool) -> Any:
    """A module of the user's own installation. how: the way to install it.

    Raises BadBackbone without `trusted`, MissingExtra where it is not installed.
    """
    if not trusted:
        raise BadBackbone(
            f"{model} runs code of its authors ({module.partition('.')[0]}). Load it with "
            "--trust-remote-code if you trust what you installed."
        )
    try:
        return importlib.import_module(module)
    except ImportError as e:
        raise MissingExtra(
            f"{model} needs code of its authors, which is not installed or does not fit "
            f"({' '.join(str(e).split())[:100]}). {how}"
        ) from e
