"""What an editor needs of memory, before it makes an edit (`errata doctor MODEL --editor E`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from errata.core.model.backbone import Backbone
from errata.core.state import State
from errata.core.types import Edit


class Needs(ABC):
    """The part of an editor that tells its needs in bytes, beyond the model's weights.

    The defaults fit editors that search nothing, or take gradients at the sites that they edit.
    """

    @abstractmethod
    def edited_sites(self, backbone: Backbone) -> Sequence[str]:
        """The sites that an edit changes, as far as they follow from the settings alone."""

    def need(self, backbone: Backbone, edits: Sequence[Edit], state: State | None = None) -> float:
        """The most that finding these edits takes, each a patch of its own, in one batch."""
        batch = backbone.encode([e.prompt for e in edits], [e.target for e in edits], eos=True)
        blocks = [backbone.block_of(site) for site in self.edited_sites(backbone)]
        if not blocks:
            return backbone.bytes_to_enter(batch)
        return backbone.bytes_to_search(batch, max(0, min(blocks)))

    def state_need(self, backbone: Backbone, state: State | None) -> float | None:
        """What the state takes; None where that is not known without it."""
        if state is None:
            return None
        return float(sum(t.numel() * t.element_size() for t in state.tensors.values()))
