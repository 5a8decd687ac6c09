"""What trained editors read of a batch: its prompts at one block, and the states behind answers.

Shapes: B rows, T columns, M answer tokens, n answer tokens of the edits, K edits, d stream width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from errata.core.backbone import Backbone, Batch, PrefixState
from errata.core.recorder import Recorder


@dataclass(frozen=True)
class PromptStates:
    """stream [B, T, d] that enters a block, mask [B, T] of prompt columns, last [B, d] of these."""

    stream: Tensor
    mask: Tensor
    last: Tensor

    @classmethod
    def of(cls, stream: Tensor, batch: Batch) -> PromptStates:
        lengths = batch.lengths.to(stream.device)
        columns = torch.arange(stream.shape[1], device=stream.device)
        mask = (columns < lengths[:, None]) & batch.mask.to(stream.device).bool()
        last = stream[torch.arange(stream.shape[0], device=stream.device), lengths - 1]
        return cls(stream.float(), mask, last.float())

    def take(self, index: Tensor) -> PromptStates:
        return PromptStates(self.stream[index], self.mask[index], self.last[index])

    @property
    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.stream, self.mask, self.last


@torch.no_grad()
def head_states(
    backbone: Backbone, what: Batch | PrefixState, rows: Tensor | None = None
) -> Tensor:
    """[B, 1 + M, d]: the head's input at the last prompt token and at each answer token."""
    watch = Recorder(("head",))
    with backbone.applied(watch):
        backbone.logits(what, rows=rows)
    return watch.x["head"].float()


@torch.no_grad()
def answer_embeddings(
    backbone: Backbone, batch: Batch, states_BMd: Tensor
) -> tuple[Tensor, Tensor]:
    """([B, n, 3, d] per answer token: its embedding, that of the token before it, the head's input
    where it was to be said; [B, n] which are real).
    """
    ids = batch.ids
    n = max(len(t) for t in batch.targets)
    steps = torch.arange(n, device=ids.device)
    real_Bn = steps < torch.tensor([[len(t)] for t in batch.targets], device=ids.device)
    columns = (batch.lengths[:, None] + steps).clamp(max=ids.shape[1] - 1)
    own = backbone.hooks.call("embed", ids.gather(1, columns)).float()
    before = backbone.hooks.call("embed", ids.gather(1, columns - 1)).float()
    device = states_BMd.device
    return torch.stack([own.to(device), before.to(device), states_BMd[:, :n]], dim=2), real_Bn.to(
        device
    )
