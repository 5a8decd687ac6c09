"""What the page offers: methods and reaches that need no preparation, in plain words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from errata.core import registry
from errata.core.types import Edit

if TYPE_CHECKING:
    from errata.core.model.backbone import Backbone

AUTOMATIC = "automatic"
EVERYWHERE = "everywhere"


@dataclass(frozen=True)
class Choice:
    """name: of an editor or a scope, or one of the two words above. words: what it is."""

    name: str
    words: str

    @property
    def label(self) -> str:
        return f"{self.words} ({self.name})" if self.words else self.name


def methods(bb: Backbone, started_with: str | None = None) -> tuple[Choice, ...]:
    """Editors that work on this model now. started_with: what the user named at the start."""
    chosen = f"{started_with}, named at the start" if started_with else "one that fits"
    found = [Choice(AUTOMATIC, chosen)]
    for name, cls in registry.usable("editors").items():
        editor = cls().for_backbone(bb)
        if editor.requires - bb.capabilities:
            continue
        if editor.needs_state and editor.shipped_state(bb) is None:
            continue
        words = registry.summary("editors", name)
        found.append(Choice(name, words.partition(": ")[2] or words))
    return tuple(found)


def reaches() -> tuple[Choice, ...]:
    """Scopes that work without a training."""
    found = [
        Choice(AUTOMATIC, "the narrowest one that holds"),
        Choice(EVERYWHERE, "all questions: the model is changed as a whole"),
    ]
    for name, cls in registry.usable("scopes").items():
        if cls.for_benches or cls.state_name or (cls.needs_state and not cls.keeps_state):
            continue
        found.append(Choice(name, cls.reach or registry.summary("scopes", name)))
    return tuple(found)


def scopes_for(edit: Edit) -> tuple[str | None, ...]:
    """The scopes that are tried where none is named, the narrowest first; None = everywhere."""
    offered = sorted(
        (cls.choice, name)
        for name, cls in registry.usable("scopes").items()
        if cls.choice and edit.modality in cls.modalities
    )
    return (*(name for _, name in offered), None)
