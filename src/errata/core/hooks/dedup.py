"""Deduplicated batch: every distinct (row, column) once.

Questions about one picture begin with identical columns, and shorter rows end in padding. Whatever
works column by column (norms, projections, FFNs: most of a block's arithmetic) needs each distinct
column once and no padding; only attention needs whole rows.

Shapes: B rows, T columns, N columns that are kept, h heads.
"""

from __future__ import annotations

import torch
from torch import Tensor


class DedupBatch:
    """Which columns are kept, and where each column of the batch lies among them.

    same [B, T]: as in `PrefixState`. mask [B, T]: real columns.
    """

    def __init__(self, same: Tensor, mask: Tensor) -> None:
        own = torch.arange(same.numel(), device=same.device)
        self.same, self.shape = same, (same.shape[0], same.shape[1])
        self.kept = ((same.flatten() == own) & mask.flatten().bool()).nonzero()[:, 0]
        place = torch.zeros_like(own)  # padding stands for any column: no column attends to it
        place[self.kept] = torch.arange(len(self.kept), device=own.device)
        self.place = place[same.flatten()]

    @classmethod
    def nothing(cls, shape: tuple[int, int], device: torch.device) -> DedupBatch:
        """All columns are distinct and real: places are those of the batch itself."""
        own = torch.arange(shape[0] * shape[1], device=device).view(shape)
        return cls(own, torch.ones_like(own))

    def pack(self, x: Tensor) -> Tensor:
        """[B, T, ...] -> [1, N, ...]."""
        return x.flatten(0, 1).index_select(0, self.kept.to(x.device))[None]

    def unpack(self, x: Tensor) -> Tensor:
        """[1, N, ...] -> [B, T, ...]."""
        return x[0].index_select(0, self.place.to(x.device)).view(*self.shape, *x.shape[2:])

    def at(self, columns: Tensor) -> Tensor:
        """[B, n] the packed places of columns [B, n]."""
        rows = torch.arange(self.shape[0], device=columns.device)[:, None] * self.shape[1]
        return self.place.to(columns.device)[rows + columns]

    def distinct(self, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Distinct rows of `columns` [B, n]: ([r] their indices, [B] the index in r for each row).

        Two rows are equal if all their columns are, in the same order.
        """
        rows = torch.arange(self.shape[0], device=columns.device)
        first = self.same.to(columns.device).gather(1, columns)
        source = first[:, 0] // self.shape[1]
        twin = (first == source[:, None] * self.shape[1] + columns[source]).all(1)
        few, of_row = torch.unique(torch.where(twin, source, rows), return_inverse=True)
        return few, of_row
