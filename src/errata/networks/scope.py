"""The trained network of a scope: it embeds prompts, so that a question lies near its edits.

Shapes: B rows, T columns, d the backbone's width, w the network's own, e width of a key.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from errata.networks.reader import Reader
from errata.networks.trained import trained

if TYPE_CHECKING:
    from errata.core.state import State


class ScopeNetwork(nn.Module):
    """Embeds prompts: a question lies near the edits whose scope it is in.

    Edits and questions share a reader but have separate projections, because being in scope is
    not symmetric (what follows from a name is in the scope of the name, not the reverse).
    """

    def __init__(
        self,
        into: int,
        width: int,
        *,
        slots: int = 8,
        blocks: int = 2,
        heads: int = 4,
        key: int = 64,
    ) -> None:
        super().__init__()
        self.settings = {
            "into": into, "width": width, "slots": slots, "blocks": blocks, "heads": heads,
            "key": key,
        }  # fmt: skip
        self.reader = Reader(into, width, slots=slots, blocks=blocks, heads=heads)
        self.norm = nn.LayerNorm(slots * width)
        self.of_query = nn.Linear(slots * width, key)
        self.of_edit = nn.Linear(slots * width, key)

    @classmethod
    def of(cls, state: State) -> ScopeNetwork:
        """The trained network of a state (meta `scope`, tensors `scope.*`)."""
        return trained(state, lambda: cls(**state.meta["scope"]), "scope.")

    def start(self) -> None:
        """Before training an edit lies at its own prompt, other prompts about 2^0.5 away."""
        with torch.no_grad():
            self.of_query.weight.mul_(self.of_query.out_features**-0.5)
        self.of_edit.load_state_dict(self.of_query.state_dict())

    def forward(self, stream: Tensor, mask: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
        """(as a question [B, e], as an edit [B, e]); arguments as `Reader`'s."""
        vector = self.norm(self.reader(stream.float(), mask, last.float()).flatten(1))
        return self.of_query(vector), self.of_edit(vector)
