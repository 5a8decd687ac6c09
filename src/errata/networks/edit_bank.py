"""The edits that an adapter can route a prompt to, as tensors.

| tensor    | shape     | holds |
| --------- | --------- | ----- |
| states[i] | [K, S, d] | hidden states of prompt and target at adapter i, zeros behind the end |
| keys      | [K, d]    | gate keys |
| lengths   | [K]       | number of tokens of prompt and target |
| ends      | [K]       | column of the last prompt token |
| owner     | [K]       | the row that the edit belongs to; 0 in a patch without rows |

K edits, S columns of the longest one, d width of the hidden states, B prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from errata.core.gate import Gate, TokenColumns
from errata.core.model.batch import Batch


@dataclass(frozen=True, eq=False)
class EditBank:
    """What the unedited model makes of each edit; the tensors are in the table above."""

    states: tuple[Tensor, ...]
    keys: Tensor
    lengths: Tensor
    ends: Tensor
    owner: Tensor

    @classmethod
    def of(
        cls,
        sites: Sequence[str],
        gate: Gate,
        batch: Batch,
        outputs: Mapping[str, Tensor],
        *,
        eos: bool,
    ) -> EditBank:
        """The edits of a batch; edit b belongs to row b.

        sites: of the adapters. outputs: site -> [B, T, d], the gate's site too. eos: whether the
        targets end with the end token.
        """
        real_BT = batch.mask.bool()
        states = tuple(outputs[site].float() * real_BT[..., None] for site in sites)
        at_gate = outputs[gate.site].float()
        keys = gate.key(at_gate, TokenColumns.of(batch, eos=eos).to(at_gate.device))
        rows = torch.arange(batch.size, device=batch.ids.device)
        return cls(states, keys, real_BT.sum(1), batch.lengths - 1, rows)

    @classmethod
    def union(cls, banks: Sequence[EditBank]) -> EditBank:
        """All edits of all banks; each stays with its owner."""
        longest = max(b.states[0].shape[1] for b in banks)

        def wide(x: Tensor) -> Tensor:
            return pad(x, (0, 0, 0, longest - x.shape[1]))

        sites = zip(*(b.states for b in banks), strict=True)
        return cls(
            tuple(torch.cat([wide(x) for x in site]) for site in sites),
            torch.cat([b.keys for b in banks]),
            torch.cat([b.lengths for b in banks]),
            torch.cat([b.ends for b in banks]),
            torch.cat([b.owner for b in banks]),
        )

    @classmethod
    def rows(cls, banks: Sequence[EditBank]) -> EditBank:
        """All edits of all banks; those of banks[r] belong to row r."""
        return cls.union(
            [replace(b, owner=torch.full_like(b.owner, r)) for r, b in enumerate(banks)]
        )

    def single(self, b: int) -> EditBank:
        """Edit b without padding, owned by row 0: it does not depend on its batch."""
        one, length = slice(b, b + 1), int(self.lengths[b])
        return EditBank(
            tuple(s[one, :length].clone() for s in self.states),
            self.keys[one].clone(),
            self.lengths[one].clone(),
            self.ends[one].clone(),
            torch.zeros_like(self.owner[one]),
        )

    def take(self, index: Sequence[int]) -> EditBank:
        """The edits at `index`."""
        at = list(index)
        return EditBank(
            tuple(s[at] for s in self.states), self.keys[at], self.lengths[at], self.ends[at],
            self.owner[at],
        )  # fmt: skip

    def owned_by(self, rows_B: Tensor) -> Tensor:
        """[B, K] the edits that belong to each row."""
        return self.owner[None] == rows_B[:, None]

    @property
    def one_per_row(self) -> bool:
        """Whether no row owns two edits."""
        return len(set(self.owner.tolist())) == len(self.owner)
