"""The linear modules of a backbone's text blocks: which sites they are, their sizes and weights.

Shapes: N random inputs, n inputs and o outputs of a linear module.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from errata.core.hooks.context import Site
from errata.core.hooks.manager import HookManager

#: part of a block -> the site of the module that does its work where projections are fused
FUSED: Mapping[str, str] = {
    **dict.fromkeys(("attn.q", "attn.k", "attn.v"), "attn.qkv"),
    **dict.fromkeys(("mlp.up", "mlp.gate"), "mlp.gate_up"),
}


class LinearSites(ABC):
    """Base of `Backbone`: what follows from its sites alone."""

    hooks: HookManager

    @property
    @abstractmethod
    def depth(self) -> int:
        """Number of text blocks L."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype: ...

    @abstractmethod
    def site(self, name: str) -> Site:
        """A site by name. Raises BadSpec."""

    @abstractmethod
    def device_of(self, site: str) -> torch.device:
        """Where the site's weights (and its patches) are; "" = the text model's first block."""

    def part_sites(self, layers: Iterable[int], parts: Sequence[str]) -> list[str]:
        """The linear sites of some text blocks, or of all blocks if none is given; each once.

        A part that is fused with others in this model (`FUSED`) stands for the whole fused module.
        Of all blocks, those are left out that lack a part which others have (a block with a linear
        attention has no q).
        """
        chosen = list(layers)
        blocks = [f"text.{i}" for i in chosen or range(self.depth)]
        own = self.hooks.sites
        found = {p for p in parts if any(self.site_of_part(b, p) in own for b in blocks)}
        sites = [
            site
            for block in blocks
            for part in parts
            if (site := self.site_of_part(block, part)) in own or chosen or part not in found
        ]
        return list(dict.fromkeys(sites))

    def site_of_part(self, block: str, part: str) -> str:
        """The site of a part of a block, or the fused one that it is in; the first if none is."""
        fused = f"{block}.{FUSED.get(part, part)}"
        own = f"{block}.{part}"
        return fused if own not in self.hooks.sites and fused in self.hooks.sites else own

    def weight(self, site: str) -> tuple[int, int]:
        """(in, out) features of a linear site."""
        module: Any = self.site(site).first
        if hasattr(module, "in_features"):
            return int(module.in_features), int(module.out_features)
        out, into = module.weight.shape[-2:]
        if hasattr(module, "nf"):  # Conv1D of transformers keeps its weight as [in, out]
            out, into = into, out
        return int(into), int(out)

    def weight_rms(self, site: str) -> float:
        """Root mean square of a linear site's weights, measured on random inputs.

        The module is run, so that it is right for quantised and offloaded weights too.
        """
        into, _ = self.weight(site)
        rng = torch.Generator().manual_seed(0)
        x_Nn = torch.randn(32, into, generator=rng).to(self.device_of(site), self.dtype)
        with torch.no_grad():
            y_No = self.hooks.call(site, x_Nn) - self.hooks.call(site, torch.zeros_like(x_Nn))
        return float((y_No.float().square().mean() / into).sqrt())

    def gated(self, site: str) -> bool:
        """Whether the FFN at `text.{i}.mlp` multiplies a gate with an up projection."""
        return any(f"{site}.{part}" in self.hooks.sites for part in ("gate", "gate_up"))
