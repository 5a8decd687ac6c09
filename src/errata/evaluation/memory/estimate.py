"""What a run takes of memory, before it starts: weights, state, one edit, one question, batches.

The counts are of tensors (`errata.core.model.budget`). A process on a CPU holds some 500 MB of
libraries besides, and freed blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

from errata.core.editor import Editor
from errata.core.model.backbone import Backbone
from errata.core.model.budget import free_bytes
from errata.core.state import State
from errata.core.types import Edit
from errata.evaluation.answers import EXTRA

#: edits and questions of which the batches are counted
MANY = 16


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes. state: None where it is not known without the state. free: on the first device now.

    edit, question: one alone. edits, questions: how many fit into one batch, of MANY and 4 MANY.
    """

    weights: float
    state: float | None
    edit: float
    question: float
    edits: int
    questions: int
    budget: float
    free: float
    tokens: int

    @property
    def peak(self) -> float:
        """Of a run that makes one edit at a time and asks one question at a time."""
        return self.weights + (self.state or 0.0) + max(self.edit, self.question)

    @property
    def fits(self) -> bool:
        """Whether that is free, beside the weights, which are loaded."""
        return self.peak - self.weights <= self.free


def weight_bytes(backbone: Backbone) -> float:
    """Of all weights and buffers, each once. Offloaded weights count, wherever they are."""
    tensors = [*backbone.model.parameters(), *backbone.model.buffers()]
    return float(sum(t.numel() * t.element_size() for t in {id(t): t for t in tensors}.values()))


def estimate(
    backbone: Backbone, editor: Editor, edit: Edit, state: State | None = None
) -> MemoryEstimate:
    """What editing with this editor and asking take, for an edit of this kind.

    Raises MissingState where the edit's size depends on a state that is not given.
    """
    editor = editor.for_backbone(backbone)
    editor.check_fit(backbone, state)
    state = state or (editor.shipped_state(backbone) if editor.uses_state else None)
    with backbone.in_edit():
        one = editor.need(backbone, [edit], state)
        more = (editor.need(backbone, [edit] * 2, state) - one) * (MANY - 1) + one
    batch = backbone.encode([edit.prompt], [edit.target])
    answer = len(batch.targets[0]) + EXTRA
    many = backbone.encode([edit.prompt] * (4 * MANY), [edit.target] * (4 * MANY))
    return MemoryEstimate(
        weights=weight_bytes(backbone),
        state=editor.state_need(backbone, state) if editor.uses_state else 0.0,
        edit=one,
        question=backbone.bytes_to_ask(batch, answer),
        edits=backbone.fitting(more, MANY),
        questions=backbone.fitting(backbone.bytes_to_ask(many, answer), 4 * MANY),
        budget=backbone.budget,
        free=float(free_bytes(backbone.device_of(""))),
        tokens=int(batch.lengths[0]),
    )
