"""Hooks that record activations and change nothing, and forwards that stop early.

Shapes: B rows, T columns, M answer tokens, n answer tokens of the edits, n and o the sizes of a
site's input and output, d width of the hidden states.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from errata.core.hooks.context import HookContext
from errata.core.hooks.hook import Hook
from errata.core.model.backbone import Backbone
from errata.core.model.batch import Batch, PrefixState


class Recorder(Hook):
    """`x[site]` [B, T, n] and `y[site]` [B, T, o] of the last forward, with their graph."""

    def __init__(self, sites: Iterable[str]) -> None:
        super().__init__(sites)
        self.x: dict[str, Tensor] = {}
        self.y: dict[str, Tensor] = {}

    def at(self, site: str, x: Tensor, y: Tensor, ctx: HookContext) -> Tensor:
        self.x[site], self.y[site] = x, y
        return y


class EnoughRecorded(Exception):
    """Raised by a hook of `run_until_enough` to end the forward that it is live in."""


class EarlyExitRecorder(Recorder):
    """A recorder that ends the forward once all its sites have run."""

    def at(self, site: str, x: Tensor, y: Tensor, ctx: HookContext) -> Tensor:
        super().at(site, x, y, ctx)
        if self.sites <= self.y.keys():
            raise EnoughRecorded
        return y


@torch.no_grad()
def run_until_enough(
    backbone: Backbone, what: Batch | PrefixState, hook: Hook, rows: Tensor | None = None
) -> None:
    """A forward with `hook` live, which may end it by raising EnoughRecorded."""
    with backbone.applied(hook):
        try:
            backbone.logits(what, rows=rows)
        except EnoughRecorded:
            pass


def outputs_at(
    backbone: Backbone, what: Batch | PrefixState, sites: Sequence[str], rows: Tensor | None = None
) -> dict[str, Tensor]:
    """Outputs [B, T, o] of `sites`, without gradients; blocks above the last of them do not run."""
    recorder = EarlyExitRecorder(sites)
    run_until_enough(backbone, what, recorder, rows)
    return recorder.y


@torch.no_grad()
def run_to_block(
    backbone: Backbone, what: Batch | PrefixState, layer: int, *, rows: Tensor | None = None
) -> None:
    """Runs the model up to and including text block `layer`, for the live recorders."""
    if layer + 1 < backbone.depth:
        backbone.enter(what, layer + 1, rows=rows)
    else:
        backbone.logits(what, rows=rows)


@dataclass(frozen=True)
class PromptStates:
    """Hidden states of prompts at one block.

    stream [B, T, d] what enters the block, mask [B, T] prompt columns, last [B, d] the state at the
    last prompt token.
    """

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
def head_inputs(
    backbone: Backbone, what: Batch | PrefixState, rows: Tensor | None = None
) -> Tensor:
    """[B, 1 + M, d]: the head's input at the last prompt token and at each answer token."""
    recorder = Recorder(("head",))
    with backbone.applied(recorder):
        backbone.logits(what, rows=rows)
    return recorder.x["head"].float()


@torch.no_grad()
def answer_embeddings(
    backbone: Backbone, batch: Batch, states_BMd: Tensor
) -> tuple[Tensor, Tensor]:
    """([B, n, 3, d], [B, n] which are real), per answer token of the batch's targets: its
    embedding, the embedding of the token before it, and the head's input that predicts it.
    """
    ids = batch.ids
    n = max(len(t) for t in batch.targets)
    steps = torch.arange(n, device=ids.device)
    real_Bn = steps < torch.tensor([[len(t)] for t in batch.targets], device=ids.device)
    columns = (batch.lengths[:, None] + steps).clamp(max=ids.shape[1] - 1)
    token = backbone.hooks.call("embed", ids.gather(1, columns)).float()
    previous = backbone.hooks.call("embed", ids.gather(1, columns - 1)).float()
    device = states_BMd.device
    return torch.stack(
        [token.to(device), previous.to(device), states_BMd[:, :n]], dim=2
    ), real_Bn.to(device)
