"""What a gate is: it routes a prompt to one of several edits, and opens or stays closed.

One file in `errata/gates/`, whose name is the gate's; third parties register an entry point in the
group `errata.gates`. Editors, states and saved patches know a gate by its name alone, so a new one
needs no other change.

A gate reads one key per sequence from the hidden states of the unedited model at its site: once
from every edit (prompt and target), when the edit is made, and once from every prompt, when it is
answered. The prompt goes to the edit with the most similar key.

Shapes: B sequences, T columns, K edits, d width of the hidden states.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from errata.core import registry
from errata.core.model.batch import Batch


@dataclass(frozen=True, eq=False)
class TokenColumns:
    """Which columns of a batch hold what.

    lengths: [B] length of the prompt, image tokens included. real: [B, T] True for prompt and
    answer, False for padding and for an end token. vision: [B, T] True for image tokens.
    """

    lengths: Tensor
    real: Tensor
    vision: Tensor

    @classmethod
    def of(cls, batch: Batch, *, eos: bool = False) -> TokenColumns:
        """Of a batch; `eos`: whether its targets end with the end token."""
        columns = torch.arange(batch.mask.shape[1], device=batch.mask.device)
        ends_B = batch.mask.sum(1) - int(eos)
        return cls(batch.lengths, columns < ends_B[:, None], batch.vision.bool())

    def to(self, device: torch.device) -> TokenColumns:
        return TokenColumns(self.lengths.to(device), self.real.to(device), self.vision.to(device))


@dataclass(frozen=True)
class Gate:
    """Opens where the key of the prompt and the key of the nearest edit have a cosine >= threshold.

    This base reads the last prompt token. A subclass overrides what differs, and may add fields: it
    is saved as `pack` says. `site` is where keys are read; below or at the lowest site that the
    edit changes, or above it (the prompt then first runs up to there without the edit).

    reads: what the key is, for figures and tables. reads_answer: whether the key of a prompt
    depends on its answer, which is there only while an answer is scored: such a gate cannot be used
    for real questions. always_open: whether it opens for every prompt (the key still chooses the
    edit), so that it has no threshold. warning: shown whenever edits are made with it.
    """

    plugin_kind: ClassVar[str] = "gates"
    name: ClassVar[str]
    reads: ClassVar[str] = "last prompt token"
    reads_answer: ClassVar[bool] = False
    always_open: ClassVar[bool] = False
    warning: ClassVar[str] = ""

    site: str
    threshold: float = 0.0

    def key(self, states_BTd: Tensor, columns: TokenColumns) -> Tensor:
        """[B, d] from the hidden states at the gate's site. NaN for a sequence that has no key."""
        rows = torch.arange(states_BTd.shape[0], device=states_BTd.device)
        return states_BTd[rows, columns.lengths - 1]

    def similarity(self, a: Tensor, b: Tensor) -> Tensor:
        """[..., d], [..., d] -> [...]; values that differ by less than 1e-5 count as equal."""
        return cosine_similarity(a, b, dim=-1)

    def opens(self, similarity_B: Tensor) -> Tensor:
        """[B] whether the edit acts, from the similarity to the nearest edit."""
        if self.always_open:
            return torch.ones_like(similarity_B, dtype=torch.bool)
        return similarity_B >= self.threshold

    def decide(
        self, query_Bd: Tensor, keys_Kd: Tensor, own_BK: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """([B] the edit that each prompt is routed to, [B] whether the gate opens).

        own_BK: the edits that a prompt can be routed to; None = all.
        """
        near_BK = self.similarity(query_Bd[:, None], keys_Kd[None])
        if own_BK is not None:
            near_BK = near_BK.masked_fill(~own_BK, -torch.inf)
        # of equally near edits the latest, so that a fact can be edited again
        chosen_B = keys_Kd.shape[0] - 1 - (near_BK * 1e5).round().flip(1).argmax(1)
        nearest_B = near_BK.gather(1, chosen_B[:, None])[:, 0]
        return chosen_B, self.opens(nearest_B) & nearest_B.isfinite()

    @classmethod
    def tune(cls, inside: Mapping[str, Tensor], outside: Mapping[str, Tensor]) -> float | None:
        """The threshold for similarities [P] of training questions, by kind of question.

        inside: of questions that the edit should change; outside: of those that it should not. The
        threshold has the best balanced accuracy, each kind with the same weight, and lies half way
        between the two similarities that it separates. None where either side has no questions.
        """
        if not inside or not outside:
            return None
        values = torch.unique(torch.cat([*inside.values(), *outside.values()]))
        cuts = torch.cat([values[:1] - 1e-3, (values[1:] + values[:-1]) / 2, values[-1:] + 1e-3])

        def share(kinds: Mapping[str, Tensor], above: bool) -> Tensor:
            parts = []
            for v in kinds.values():
                below = torch.searchsorted(v.sort().values, cuts) / len(v)
                parts.append(1 - below if above else below)
            return torch.stack(parts).mean(0)

        best = (share(inside, True) + share(outside, False)).argmax()
        return round(float(cuts[best]), 6)

    def pack(self) -> dict[str, Any]:
        """JSON-ready: what `unpack` makes the gate from."""
        return {"kind": self.name, **asdict(self)}


def gate_class(name: str) -> type[Gate]:
    """The gate called `name`. Raises UnknownName, with the names that exist."""
    return registry.load("gates", name)


def unpack_gate(settings: Mapping[str, Any]) -> Gate:
    """The inverse of `Gate.pack`."""
    fields = dict(settings)
    return gate_class(str(fields.pop("kind")))(**fields)
