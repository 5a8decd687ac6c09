"""Helpers of the shapes that can have a row per patch.

Shapes: R patches in a batch, B rows of x, T columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor


def per_row(
    x: Tensor, rows: Tensor, count: int, run: Callable[[Tensor, Tensor | None], Tensor]
) -> Tensor:
    """[B, T, o] from `run(x [R', k*T, n], index [R'])`: row b of x is run with patch rows[b].

    An index of None means all patches in order, which needs no copy. Rows with the same patch are
    grouped first, so that there is one product per patch and no copy of a patch per row.
    """
    b, t, n = x.shape
    if b == count and _is_range(rows, count):
        return run(x, None)
    order = torch.argsort(rows, stable=True)
    used, sizes = torch.unique_consecutive(rows[order], return_counts=True)
    if bool((sizes == sizes[0]).all()):
        k = int(sizes[0])
        index = None if len(used) == count else used
        y = run(x[order].reshape(len(used), k * t, n), index).reshape(b, t, -1)
    else:
        parts = torch.split(x[order], sizes.tolist())
        y = torch.cat(
            [
                run(part.reshape(1, -1, n), used[i : i + 1]).reshape(part.shape[0], t, -1)
                for i, part in enumerate(parts)
            ]
        )
    return y[torch.argsort(order)]


def picked(tensors: Mapping[str, Tensor], index: Tensor | None) -> Mapping[str, Tensor]:
    """The given rows of every tensor."""
    return tensors if index is None else {k: t[index] for k, t in tensors.items()}


def spread(values: Tensor, columns: Tensor, size: int) -> Tensor:
    """[B, n, o] at columns [B, n] of [B, size, o], zeros elsewhere.

    Of a column that is listed twice one value is used.
    """
    rows, last = len(values), values.shape[0] * values.shape[1]
    flat = torch.cat([values.flatten(0, 1), values.new_zeros(1, values.shape[2])])
    places = columns + size * torch.arange(rows, device=columns.device)[:, None]
    source = torch.full((rows * size,), last, device=columns.device)
    source[places.flatten()] = torch.arange(last, device=columns.device)
    return flat.index_select(0, source).view(rows, size, -1)


def joined(tensors: Sequence[Tensor], dim: int) -> Tensor:
    """The tensors one after the other along `dim`, and zeros behind them: they add exactly nothing.

    A compiled model then sees few shapes, whatever the number of merged patches. Copied once.
    """
    count = sum(t.shape[dim] for t in tensors)
    shape = list(tensors[0].shape)
    shape[dim] = padded_size(count) - count
    return torch.cat([*tensors, tensors[0].new_zeros(shape)], dim=dim)


def padded_size(count: int) -> int:
    """At least `count`: powers of four, from 256 on of two, from 2048 on quarters between them.

    The work of thousands of neurons grows with their number then, not in steps of twice as many.
    """
    size = 1
    while size < count:
        size *= 4 if size < 256 else 2
    step = size // 8
    return size if size <= 2048 else -(-count // step) * step


def _is_range(rows: Tensor, count: int) -> bool:
    return rows.shape[0] == count and bool((rows == torch.arange(count, device=rows.device)).all())
