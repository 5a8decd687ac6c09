"""Text models that read pictures by cross-attention: the image never enters the stream.

Shapes: B rows, T columns, N pictures of the row that has most, t tiles, K picture states of a row.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

#: keywords of a text model with cross-attention: what is read, which of it, and for which columns
STATES, MASK, ROWS = (
    "cross_attention_states",
    "cross_attention_mask",
    "full_text_row_masked_out_mask",
)


def reads_pictures(text: nn.Module) -> bool:
    """Whether some blocks of the text model attend to pictures."""
    return STATES in inspect.signature(type(text).forward).parameters


def inputs_of(
    tensors: Mapping[str, Tensor],
    rows: Sequence[int],
    ids: Sequence[Sequence[int]],
    image_id: int,
) -> dict[str, Tensor]:
    """Inputs of single pictures [images, 1, ...] as those of the rows [B, N, ...].

    rows: the row of each picture. ids: tokens of the rows. A row with fewer pictures than another
    gets empty ones.
    """
    counts = [list(rows).count(b) for b in range(len(ids))]
    out = {}
    for key, value in tensors.items():
        if key == MASK:
            continue
        whole = value.new_zeros((len(ids), max(counts), *value.shape[2:]))
        if key == "aspect_ratio_mask":
            whole[..., 0] = 1  # an empty picture has one tile, as in the processor's own batches
        for i, b in enumerate(rows):
            whole[b, list(rows[:i]).count(b)] = value[i, 0]
        out[key] = whole
    tiles = tensors[MASK].sum(-1).amax((1, 2)).tolist()  # of each picture
    of_row = [[n for n, row in zip(tiles, rows, strict=True) if row == b] for b in range(len(ids))]
    out[MASK] = _mask(ids, image_id, of_row, tensors[MASK].shape[-1])
    return out


def _mask(
    ids: Sequence[Sequence[int]], image_id: int, tiles: Sequence[Sequence[int]], most: int
) -> Tensor:
    """[B, T, N, most]: which tiles a column attends to.

    A column reads a picture from its token on, up to the next token of a picture; of a run of them
    the whole run. tiles: of each row's pictures.
    """
    mask = torch.zeros(len(ids), max(map(len, ids)), max(map(len, tiles)), most, dtype=torch.long)
    for b, row in enumerate(ids):
        places = [c for c, token in enumerate(row) if token == image_id]
        end = len(row)
        for n in reversed(range(len(places))):
            following = places[n + 1] if n + 1 < len(places) else None
            if following is not None and following != places[n] + 1:
                end = following
            mask[b, places[n] : end, n, : tiles[b][n]] = 1
    return mask


def extended(mask: Tensor, lengths: Tensor, columns: int) -> Tensor:
    """[B, columns, N, t]: columns after a prompt read what its last token reads."""
    source = torch.minimum(torch.arange(columns, device=mask.device), lengths[:, None] - 1)
    return mask[torch.arange(len(mask), device=mask.device)[:, None], source]


def evened(
    trunk: Mapping[str, Any], counts: Sequence[int], width: int, dtype: Any
) -> dict[str, Any]:
    """The keywords of the text model so that a row reads what it reads alone.

    counts: pictures of each row. A column that attends to nothing attends to all states alike, so
    the empty pictures of a row must be masked there too. A row without pictures gets zeros to read:
    the block then adds nothing, as where the model leaves the block out.
    """
    given = trunk.get(STATES)
    rows = len(counts)
    text = trunk.get("inputs_embeds")
    columns = (text if text is not None else trunk["input_ids"]).shape[1]
    if given is None:
        device = trunk["attention_mask"].device
        zeros = torch.zeros(rows, 1, width, dtype=dtype, device=device)
        nothing = torch.zeros(rows, 1, columns, 1, dtype=dtype, device=device)
        return {**trunk, STATES: zeros, MASK: nothing, ROWS: nothing}
    count = torch.tensor(counts, device=given.device)
    most = int(count.max())
    states = given.view(rows, -1, given.shape[-1])
    of_picture = torch.arange(states.shape[1], device=given.device) // (states.shape[1] // most)
    empty = (of_picture >= count[:, None]) & (count > 0)[:, None]
    mask = trunk[MASK].masked_fill(empty[:, None, None], torch.finfo(trunk[MASK].dtype).min)
    return {**trunk, STATES: states * (count > 0)[:, None, None], MASK: mask}
