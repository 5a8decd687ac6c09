"""The outline of a model: its modules, sites and files, to look at and not to ask."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from errata.core.hooks.context import Site
from errata.core.patch import Identified


@dataclass(frozen=True)
class ModelOutline:
    """model: may be on the meta device. source: the folder of its weight files, if it is known.

    identity: knows the fingerprint, which is computed when it is asked for; it may raise
    BadBackbone.
    """

    name: str
    model: nn.Module
    sites: Mapping[str, Site]
    source: Path | None
    identity: Identified
    revision: str = ""
