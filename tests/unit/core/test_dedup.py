"""Three rows, of which the second begins like the first and the third is shorter."""

from __future__ import annotations

import torch

from errata.core.hooks.dedup import DedupBatch

#   row 0: a b c    row 1: a b d    row 2: e -      (flat places 0..8; - is padding, twice)
SAME = torch.tensor([[0, 1, 2], [0, 1, 5], [6, 7, 8]])
MASK = torch.tensor([[1, 1, 1], [1, 1, 1], [1, 0, 0]])
X = torch.tensor([[1.0, 2, 3], [1, 2, 4], [5, 0, 0]])[..., None]


def test_every_different_column_is_there_once() -> None:
    dedup = DedupBatch(SAME, MASK)
    assert dedup.pack(X)[0, :, 0].tolist() == [1, 2, 3, 4, 5]
    back = dedup.unpack(dedup.pack(X))
    assert torch.equal(back[MASK.bool()], X[MASK.bool()]) and back.shape == X.shape


def test_gradients_of_equal_columns_add_up() -> None:
    dedup = DedupBatch(SAME, MASK)
    x = dedup.pack(X).requires_grad_(True)
    (dedup.unpack(x) * MASK[..., None]).sum().backward()
    assert x.grad is not None and x.grad[0, :, 0].tolist() == [2, 2, 1, 1, 1]


def test_places_of_columns() -> None:
    columns = torch.tensor([[1, 2], [1, 2], [0, 0]])
    assert DedupBatch(SAME, MASK).at(columns).tolist() == [[1, 2], [1, 3], [4, 4]]
    plain = DedupBatch.all_distinct((3, 3), columns.device)
    assert plain.at(columns).tolist() == [[1, 2], [4, 5], [6, 6]]


def test_rows_that_stand_for_all() -> None:
    """Rows 0 and 1 are one in their first two columns, and in no choice that holds the third."""
    dedup = DedupBatch(SAME, MASK)
    few, of_row = dedup.distinct(torch.tensor([[0, 1], [0, 1], [0, 1]]))
    assert few.tolist() == [0, 2] and of_row.tolist() == [0, 0, 1]
    few, of_row = dedup.distinct(torch.tensor([[0, 2], [0, 2], [0, 1]]))
    assert few.tolist() == [0, 1, 2] and of_row.tolist() == [0, 1, 2]
    few, _ = dedup.distinct(torch.tensor([[1, 0], [0, 1], [0, 1]]))  # another order
    assert few.tolist() == [0, 1, 2]
