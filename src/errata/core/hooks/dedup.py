"""Deduplicated batch: every distinct (row, column) once.

Prompts about one picture share a prefix, and shorter rows end in padding. Everything that is
computed per column (norms, projections, FFNs: most of a block's arithmetic) needs each distinct
column once and no padding; only attention needs whole rows.

Shapes: B rows, T columns, N columns that are kept, h heads.
"""

from __future__ import annotations

import torch
from torch import Tensor


class DedupBatch:
    """Which columns are kept, and the index of each column of the batch among them.

    same [B, T]: as in `PrefixState`. mask [B, T]: real columns.
    """

    def __init__(self, same: Tensor, mask: Tensor) -> None:
        index = torch.arange(same.numel(), device=same.device)
        self.same, self.shape = same, (same.shape[0], same.shape[1])
        self.kept = ((same.flatten() == index) & mask.flatten().bool()).nonzero()[:, 0]
        packed = torch.zeros_like(index)  # padding gets any column: no column attends to it
        packed[self.kept] = torch.arange(len(self.kept), device=index.device)
        self.packed = packed[same.flatten()]

    @classmethod
    def all_distinct(cls, shape: tuple[int, int], device: torch.device) -> DedupBatch:
        """All columns are distinct and real: packing changes no order."""
        index = torch.arange(shape[0] * shape[1], device=device).view(shape)
        return cls(index, torch.ones_like(index))

    def pack(self, x: Tensor) -> Tensor:
        """[B, T, ...] -> [1, N, ...]."""
        return x.flatten(0, 1).index_select(0, self.kept.to(x.device))[None]

    def unpack(self, x: Tensor) -> Tensor:
        """[1, N, ...] -> [B, T, ...]; also of [N, n], as some blocks call their FFN."""
        columns = x if x.dim() == 2 else x[0]
        whole = columns.index_select(0, self.packed.to(x.device))
        return whole.view(*self.shape, *columns.shape[1:])

    def at(self, columns: Tensor) -> Tensor:
        """[B, n] the packed indices of columns [B, n]."""
        rows = torch.arange(self.shape[0], device=columns.device)[:, None] * self.shape[1]
        return self.packed.to(columns.device)[rows + columns]

    def distinct(self, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Distinct rows of `columns` [B, n]: ([r] their indices, [B] the index in r for each row).

        Two rows are equal if all their columns are, in the same order.
        """
        rows = torch.arange(self.shape[0], device=columns.device)
        first = self.same.to(columns.device).gather(1, columns)
        source = first[:, 0] // self.shape[1]
        equal = (first == source[:, None] * self.shape[1] + columns[source]).all(1)
        distinct, of_row = torch.unique(torch.where(equal, source, rows), return_inverse=True)
        return distinct, of_row
